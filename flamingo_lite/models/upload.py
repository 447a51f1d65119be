"""Upload to the Hugging Face hub: the saved directory as it is, our model card included."""

from __future__ import annotations

import tempfile

from huggingface_hub import HfApi
from transformers import PreTrainedModel, ProcessorMixin


def upload(
    model: PreTrainedModel,
    repo_id: str,
    *,
    processor: ProcessorMixin | None = None,
    commit_message: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
) -> str:
    """Saves `model`, and `processor` if given, to the repository, made if it is not there; returns the commit's
    address. A README.md that the repository has is kept: someone may have written it.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    has_card = api.file_exists(repo_id, "README.md", revision=revision)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory, max_shard_size=max_shard_size)
        if processor is not None:
            processor.save_pretrained(directory)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=directory,
            commit_message=commit_message or f"Upload {type(model).__name__}",
            revision=revision,
            create_pr=create_pr,
            ignore_patterns=["README.md"] if has_card else None,
        )
    return str(done.commit_url)
