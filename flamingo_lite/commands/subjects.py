"""The models that an evaluation is to ask: ours, those of transformers, those behind an endpoint."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from flamingo_lite.config import Config
    from flamingo_lite.evaluation.answers import Generate
    from flamingo_lite.evaluation.others.choice import ModelChoice
    from flamingo_lite.evaluation.ranking import Rank
    from flamingo_lite.evaluation.runner import Subject

WEIGHTS = ("*.safetensors", "*.pt", "*.bin")


def subjects_of(config: "Config", processes: int) -> "list[Subject]":
    """The models to evaluate. Errors: `FlamingoError` for a directory that holds none, and for what `models` says of one
    that does not fit together."""
    from flamingo_lite.evaluation.others.choice import ModelChoice, model_choice
    from flamingo_lite.training.settings import MODEL

    directory = Path(config.checkpoint or Path(config.output) / MODEL)
    chosen = {name: model_choice(name, said) for name, said in config.models.items()}
    chosen = chosen or {directory.name: ModelChoice(path=str(directory))}
    return [subject_of(name, choice, config, processes) for name, choice in chosen.items()]


def subject_of(name: str, choice: "ModelChoice", config: "Config", processes: int) -> "Subject":
    """One model. What is wrong with it is said here, before anything is asked."""
    from flamingo_lite.checkpoints.io import load_processor
    from flamingo_lite.evaluation.others.loading import fetched, is_of_transformers
    from flamingo_lite.evaluation.runner import Subject

    if choice.endpoint:
        return endpoint_subject(name, choice, config, processes)
    path = fetched(choice.hub, choice.revision) if choice.hub else Path(choice.path)
    if choice.kind == "transformers" or (choice.kind == "auto" and is_of_transformers(path)):
        return transformers_subject(name, path, choice, config)
    load_processor(path)
    return Subject(name, loader(path, config, processes), weights_sha256(path), rendering=choice.rendering)


def transformers_subject(name: str, path: Path, choice: "ModelChoice", config: "Config") -> "Subject":
    """A model of transformers, shown prompts as turns where its processor has a chat template."""
    from flamingo_lite.errors import FlamingoError
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

    info = {"run_by": "transformers", **({"hub": choice.hub} if choice.hub else {})}
    info |= {"revision": path.name} if choice.hub else {}
    return Subject(name, load_answers, weights_sha256(path), info, rendering)


def endpoint_subject(name: str, choice: "ModelChoice", config: "Config", processes: int) -> "Subject":
    """A model behind an endpoint; its answers are kept in the output, so that none is paid for twice."""
    from flamingo_lite.errors import FlamingoError
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
    asked = config.eval.rendering if config.eval.rendering != "interleaved" else own
    return choice.rendering or asked


def loader(path: Path, config: "Config", processes: int) -> "Callable[[], tuple[Generate, Rank | None]]":
    """Loads a model on its device, when called."""

    def load_answers() -> "tuple[Generate, Rank | None]":
        import torch

        from flamingo_lite.checkpoints.io import load
        from flamingo_lite.data.features import FeatureCache
        from flamingo_lite.data.stores import parse_bytes
        from flamingo_lite.evaluation.answering import ModelAnswers
        from flamingo_lite.training.features import features_key
        from flamingo_lite.training.settings import torch_device

        model, processor = load(path)
        torch.nn.Module.to(model, torch_device(config.trainer.accelerator))
        features = None
        if config.eval.features is not None:
            # Under the name that training in one type gives them, so that the two share them.
            precision = {torch.float32: "32-true", torch.bfloat16: "bf16-true"}.get(
                model.dtype, str(model.dtype)
            )
            key = features_key(model, processor, precision, draft=False)
            limit = parse_bytes(config.data.features.bytes, "data.features.bytes")
            features = FeatureCache(config.eval.features, key, limit)
        media_bytes = parse_bytes(config.eval.media_bytes, "eval.media_bytes") // processes
        answers = ModelAnswers(model, processor, config.eval.batch_size, media_bytes, features)
        return answers.generate, answers.rank

    return load_answers


def weights_sha256(directory: Path) -> str:
    """sha256 over the names and bytes of the directory's files of weights."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(path for pattern in WEIGHTS for path in directory.glob(pattern)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
