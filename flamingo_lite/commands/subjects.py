"""The models that an evaluation is to ask: ours, those of transformers, those behind an endpoint."""

from pathlib import Path
from typing import TYPE_CHECKING

from flamingo_lite.checkpoints.sums import files_sha256
from flamingo_lite.errors import FlamingoError

if TYPE_CHECKING:
    from collections.abc import Callable

    from flamingo_lite.config import Config
    from flamingo_lite.data.features import FeatureCache
    from flamingo_lite.evaluation.answers import Generate
    from flamingo_lite.evaluation.others.choice import ModelChoice
    from flamingo_lite.evaluation.ranking import Rank
    from flamingo_lite.evaluation.runner import Subject
    from flamingo_lite.models.model import VisionLanguageModel
    from flamingo_lite.processing import VisionLanguageProcessor

    Load = Callable[[Path, str], tuple[VisionLanguageModel, VisionLanguageProcessor]]

NAME_ONE = "name one with eval.image_encoder (tiny, an open_clip model with its weights, a directory)"


def load_on_device(path: Path, accelerator: str) -> "tuple[VisionLanguageModel, VisionLanguageProcessor]":
    import torch

    from flamingo_lite.checkpoints.io import load
    from flamingo_lite.training.settings import torch_device

    model, processor = load(path)
    torch.nn.Module.to(model, torch_device(accelerator))
    return model, processor


def choices_of(config: "Config") -> "dict[str, ModelChoice]":
    """What is said of each model to evaluate, by name."""
    from flamingo_lite.evaluation.others.choice import ModelChoice, model_choice
    from flamingo_lite.training.settings import MODEL

    directory = Path(config.checkpoint or Path(config.output) / MODEL)
    chosen = {name: model_choice(name, said) for name, said in config.models.items()}
    return chosen or {directory.name: ModelChoice(path=str(directory))}


def subjects_of(config: "Config", processes: int, load: "Load" = load_on_device) -> "list[Subject]":
    """The models to evaluate. Errors: `FlamingoError` for a directory that holds none, for what `models` says of one that
    does not fit together, and where demonstrations are chosen by a model's own encoder and there is not one of ours."""
    chosen = choices_of(config)
    if config.eval.needs_own_encoder:
        if len(chosen) > 1:
            raise FlamingoError(
                f"{len(chosen)} models would each choose demonstrations by an encoder of their own; {NAME_ONE}"
            )
        [(name, only)] = chosen.items()
        if only.endpoint or only.kind == "transformers" or not is_ours(only, directory_of(only)):
            raise FlamingoError(f"models.{name} has no vision encoder that could be asked; {NAME_ONE}")
    return [subject_of(name, choice, config, processes, load) for name, choice in chosen.items()]


def is_ours(choice: "ModelChoice", path: Path) -> bool:
    """Whether our code runs the model in the directory: it is ours, or is read as ours."""
    from flamingo_lite.evaluation.others.loading import is_of_transformers

    return choice.kind == "ours" or (choice.kind == "auto" and not is_of_transformers(path))


def directory_of(choice: "ModelChoice") -> Path:
    """Where a model lies that runs here; one on the hub is fetched. Errors: as `fetched`."""
    from flamingo_lite.evaluation.others.loading import fetched

    return fetched(choice.hub, choice.revision) if choice.hub else Path(choice.path)


def subject_of(name: str, choice: "ModelChoice", config: "Config", processes: int, load: "Load") -> "Subject":
    """One model. What is wrong with it is said here, before anything is asked."""
    from flamingo_lite.checkpoints.io import load_processor
    from flamingo_lite.evaluation.runner import Subject

    if choice.endpoint:
        return endpoint_subject(name, choice, config, processes)
    path = directory_of(choice)
    if not is_ours(choice, path):
        return transformers_subject(name, path, choice, config)
    if choice.dtype != "auto":
        raise FlamingoError(
            f"models.{name} names a dtype, and our models run in that of their files; leave it out, or say "
            "kind: transformers where that reads the model, too"
        )
    load_processor(path)
    return Subject(
        name, loader(path, config, processes, load), files_sha256(path), rendering=choice.rendering
    )


def transformers_subject(name: str, path: Path, choice: "ModelChoice", config: "Config") -> "Subject":
    """A model of transformers, shown prompts as turns where its processor has a chat template."""
    from flamingo_lite.evaluation.others.loading import load_model, load_processor
    from flamingo_lite.evaluation.others.writing import has_chat_template
    from flamingo_lite.evaluation.runner import Subject

    processor = load_processor(path)
    can_chat = has_chat_template(processor)
    rendering = _rendering(choice, config, "turns" if can_chat else "interleaved")
    if rendering != "interleaved" and not can_chat:
        raise FlamingoError(
            f"models.{name} is to be shown {rendering.replace('_', ' ')}, and its processor has no chat template; say "
            "rendering: interleaved"
        )

    def load_answers() -> "tuple[Generate, Rank | None]":
        from flamingo_lite.evaluation.others.transformers_answers import TransformersAnswers
        from flamingo_lite.training.settings import torch_device

        model = load_model(path, choice.dtype, torch_device(config.trainer.accelerator))
        answers = TransformersAnswers(model, processor, config.eval.batch_size)
        return answers.generate, answers.rank

    info = {"run_by": "transformers", "dtype": choice.dtype}
    info |= {"hub": choice.hub, "revision": path.name} if choice.hub else {}
    return Subject(name, load_answers, files_sha256(path), info, rendering)


def endpoint_subject(name: str, choice: "ModelChoice", config: "Config", processes: int) -> "Subject":
    """A model behind an endpoint; its answers are kept in the output, so that none is paid for twice."""
    from flamingo_lite.evaluation.others.endpoint import EndpointAnswers
    from flamingo_lite.evaluation.runner import Subject
    from flamingo_lite.teacher import make_asker, make_teacher

    rendering = _rendering(choice, config, "turns")
    if rendering == "interleaved":
        raise FlamingoError(
            f"models.{name} is behind an endpoint, which takes turns; say rendering: turns, or one_turn"
        )
    if processes > 1:
        raise FlamingoError(
            f"models.{name} is behind an endpoint, which one process asks, concurrency= requests at once; say "
            "trainer.devices=1"
        )
    options = choice.teacher_options
    teacher = make_teacher("endpoint", options)  # without a key it is said now

    def load_answers() -> "tuple[Generate, Rank | None]":
        asker = make_asker(teacher, options, Path(config.output))
        return EndpointAnswers(asker, options.temperature, choice.image_tokens).generate, None

    info = {
        "run_by": "an endpoint",
        "endpoint": choice.base_url or "https://api.openai.com/v1",
        "asked_for": choice.endpoint,
        "temperature": choice.temperature,
    }
    return Subject(name, load_answers, None, info, rendering)


def _rendering(choice: "ModelChoice", config: "Config", own: str) -> str:
    """What is said of the model, else of the evaluation, else the model's own way."""
    return choice.rendering or config.eval.rendering or own


def key_of_features(model: "VisionLanguageModel", processor: "VisionLanguageProcessor") -> str:
    """The name of what the vision encoder gives, the one under which training in one type keeps it."""
    import torch

    from flamingo_lite.training.features import features_key

    precision = {torch.float32: "32-true", torch.bfloat16: "bf16-true"}.get(model.dtype, str(model.dtype))
    return features_key(model, processor, precision, draft=False)


def kept_features(config: "Config", folder: str | Path, key: str) -> "FeatureCache":
    """The cache in `folder` of what an encoder of this key gives."""
    from flamingo_lite.data.features import FeatureCache
    from flamingo_lite.data.stores import parse_bytes

    return FeatureCache(folder, key, parse_bytes(config.data.features.bytes, "data.features.bytes"))


def loader(
    path: Path, config: "Config", processes: int, load: "Load"
) -> "Callable[[], tuple[Generate, Rank | None]]":
    """Loads a model on its device, when called."""

    def load_answers() -> "tuple[Generate, Rank | None]":
        from flamingo_lite.data.stores import parse_bytes
        from flamingo_lite.evaluation.answering import ModelAnswers

        model, processor = load(path, config.trainer.accelerator)
        features = None
        if config.eval.features is not None:
            features = kept_features(config, config.eval.features, key_of_features(model, processor))
        media_bytes = parse_bytes(config.eval.media_bytes, "eval.media_bytes") // processes
        answers = ModelAnswers(model, processor, config.eval.batch_size, media_bytes, features)
        return answers.generate, answers.rank

    return load_answers
