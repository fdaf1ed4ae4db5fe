"""One typed configuration for every stage: `configs/PRESET.yaml`, then what the command line sets."""

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from hybridflow.errors import TrainingError


_LARGE = 1e9
_REAL = (float, float | None)


def _setting(default: Any, least: float = 0, most: float = _LARGE, above: float = -1, multiple: int = 1) -> Any:
    """A field whose numbers lie in [least, most] and over `above`; integers are multiples of `multiple`."""
    bounds = {"least": least, "most": most, "above": above, "multiple": multiple}
    return dataclasses.field(default=default, metadata=bounds)


@dataclass(frozen=True)
class TrainConfig:
    """How a stage is trained.

    Attributes:
        batch, crop: crops a step, over all processes, and their side in pixels (a multiple of 64).
        accumulate: parts that a process takes its share of the batch in, one after the other, to save memory; terms of
            masked and sent indices are then averaged part by part.
        learning_rate: Muon's peak, of which AdamW's is a half, reached after `warmup_steps` or a tenth of the stage,
            whichever comes first, then cosine down to a hundredth.
        max_minutes, max_steps: the stage ends when either is reached, earlier calls of a resumed run counted; the
            schedule is paced by the steps if they are given, else by the minutes.
        relaxed_rate, relaxed_until: lambda, the weight of bits per pixel, starts at this share of itself and grows,
            geometrically, until it is whole after this share of the stage.
        commitment_weight, quantise_from: of the tokenizer; the quantiser joins after this share of the stage.
        adversarial_weight, adversarial_from: of a discriminator in the tokenizer and perceptual stages, over the weight
            at which it pulls as the distortion does; it joins after this share of the stage.
        grid_weight: of what shows of grids, over its weight in the distortion; 0 leaves grids to grow.
        texture_weight: of the perceptual stage: of how unlike textures are, beside the distortion. Textures are easiest
            made in grids, so `grid_weight` should grow along.
        mse_weight: of the baseline stage: this much of the mean squared error takes the place of the distortion, if it
            is not 0.
        index_weight: of predictor and index prior bits in the joint stages.
        ema_decay: of the averaged weights that are evaluated and exported; at step n it is at most (1 + n) / (10 + n).
        clip: largest gradient norm.
        bf16: networks run in bfloat16 (autocast) where the device computes in it, else in float32.
        compile: compile the parts by torch.compile, but for the codebook, and the index prior, which has no `forward`;
            not with a discriminator.
        transpose: share of the crops that are transposed; half of all are mirrored in any case.
        downscale: half of the crops are down-scaled at random by up to this factor.
        jitter: brightness, contrast and saturation change by up to this share.
        streaming: read tar shards again and again instead of holding every photo in memory; large photos are then drawn
            no more often than others.
        validate_minutes, validation_crops: between two validations, and how many crops of held-out photos they see.
        patience: stop after so many validations without a better one; none if null.
        save_minutes: between two saves of the full state.
        log_steps: steps that a line of the log averages over.
        seed: of everything random.
    """

    batch: int = _setting(16, least=1)
    crop: int = _setting(128, least=64, multiple=64)
    accumulate: int = _setting(1, least=1)
    learning_rate: float = _setting(1e-3, above=0)
    warmup_steps: int = _setting(200)
    max_minutes: float | None = _setting(None, above=0)
    max_steps: int | None = _setting(None, least=1)
    relaxed_rate: float = _setting(0.03, above=0, most=1)
    relaxed_until: float = _setting(0.4, most=1)
    commitment_weight: float = _setting(0.25)
    quantise_from: float = _setting(0.12, most=1)
    adversarial_weight: float = _setting(0.0)
    adversarial_from: float = _setting(0.7, most=1)
    grid_weight: float = _setting(1.0)
    texture_weight: float = _setting(0.0)
    mse_weight: float = _setting(0.0)
    index_weight: float = _setting(0.02)
    ema_decay: float = _setting(0.998, most=1)
    clip: float = _setting(1.0, above=0)
    bf16: bool = _setting(True)
    compile: bool = _setting(False)
    transpose: float = _setting(0.0, most=1)
    downscale: float = _setting(1.0, least=1)
    jitter: float = _setting(0.0, most=1)
    streaming: bool = _setting(False)
    validate_minutes: float = _setting(5.0)
    validation_crops: int = _setting(32, least=1)
    patience: int | None = _setting(None, least=1)
    save_minutes: float = _setting(3.0)
    log_steps: int = _setting(50, least=1)
    seed: int = _setting(0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.max_minutes is None and self.max_steps is None:
            raise TrainingError("max_steps and max_minutes are both null: a stage needs an end, set one")


SETTINGS = {field.name: field.type for field in dataclasses.fields(TrainConfig)}


def load_config(stage: str, preset: str, settings: list[str], resumed: Path | None = None) -> TrainConfig:
    """The configuration of a stage for a preset that is shipped, with "key=value" strings applied to it.

    Args:
        resumed: a run's `config.yaml`, which takes the preset's place.

    Raises:
        TrainingError: a key that does not exist or a value that cannot be; the message names the key.
    """
    sections = _sections(preset)
    configured = sections["all"] | sections[stage]
    if resumed is not None:
        configured |= {key: value for key, value in yaml.safe_load(resumed.read_text()).items() if key in SETTINGS}
    chosen = dict(_parse(setting) for setting in settings)
    return TrainConfig(**_typed(configured | chosen))


def load_plan(preset: str) -> tuple[float, dict[str, float]]:
    """Minutes of a campaign for a preset that is shipped, and the share of them of each stage, in order."""
    plan = _sections(preset)["plan"]
    return plan["minutes"], plan["shares"]


def _sections(preset: str) -> dict[str, Any]:
    return yaml.safe_load((resources.files("hybridflow.training") / "configs" / f"{preset}.yaml").read_text())


def _parse(setting: str) -> tuple[str, Any]:
    key, equals, value = setting.partition("=")
    try:
        return key, yaml.safe_load(value) if equals else None
    except yaml.YAMLError:
        return key, value


def _typed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, numbers of real ones made float where YAML takes them for a text, as it does 1e-3."""
    for key in settings:
        if key not in SETTINGS:
            raise TrainingError(f"unknown setting {key!r}: choose one of {', '.join(SETTINGS)}")
    return {key: _as_float(value) if SETTINGS[key] in _REAL else value for key, value in settings.items()}


def _as_float(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check(field: dataclasses.Field, value: Any) -> None:
    kind, bounds = field.type, field.metadata
    accepted = kind | int if kind in _REAL else kind
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        names = {bool: "true or false", int: "an integer", float: "a number", int | None: "an integer or null"}
        name = names.get(kind, "a number or null")
        raise TrainingError(f"{field.name} wants {name}, got {value!r}")
    if value is None or kind is bool:
        return
    inside = bounds["above"] < value and bounds["least"] <= value <= bounds["most"]
    if not inside or bounds["multiple"] > 1 and value % bounds["multiple"]:
        wanted = [f"at least {bounds['least']}"] if bounds["above"] < 0 else [f"over {bounds['above']}"]
        wanted += [f"at most {bounds['most']}"] if bounds["most"] < _LARGE else []
        wanted += [f"a multiple of {bounds['multiple']}"] if bounds["multiple"] > 1 else []
        raise TrainingError(f"{field.name} must be {', '.join(wanted)}, got {value}")
