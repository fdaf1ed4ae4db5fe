"""One typed configuration for every stage."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """How a stage is trained.

    Attributes:
        batch, crop: crops a step, and their side in pixels (a multiple of 64).
        learning_rate: peak, reached after `warmup_steps`, then cosine down to a hundredth.
        max_minutes: clock of the stage, earlier calls of a resumed run counted; it also paces the schedule unless
            `max_steps` is given.
        relaxed_rate, relaxed_until: lambda starts at this share of itself and grows, geometrically, until it is whole
            after this share of the stage.
        commitment_weight, quantise_from: of the tokenizer; the quantiser joins after this share of the stage.
        index_weight: of predictor and index prior bits in the joint stages.
        ema_decay: of the averaged weights that are evaluated and exported.
        clip: largest gradient norm.
        save_minutes: between two saves of the full state.
    """

    batch: int = 16
    crop: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    max_minutes: float = 10.0
    max_steps: int | None = None
    relaxed_rate: float = 0.03
    relaxed_until: float = 0.4
    commitment_weight: float = 0.25
    quantise_from: float = 0.12
    index_weight: float = 0.02
    ema_decay: float = 0.998
    clip: float = 1.0
    save_minutes: float = 3.0
    seed: int = 0

    def override(self, settings: list[str]) -> "TrainConfig":
        """Apply "key=value" strings.

        Raises:
            ValueError: a key that does not exist or a value of the wrong type; the message names the key.
        """
        types = {field.name: field.type for field in dataclasses.fields(self)}
        changes = {}
        for setting in settings:
            key, _, value = setting.partition("=")
            if key not in types:
                raise ValueError(f"unknown setting {key!r}: choose one of {', '.join(types)}")
            convert = float if types[key] is float else int
            try:
                changes[key] = convert(value)
            except ValueError:
                raise ValueError(f"{key} wants a number, got {value!r}") from None
        return dataclasses.replace(self, **changes)
