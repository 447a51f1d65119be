"""The model: encode the images, connect them to media tokens, fuse these with the language model, predict.

Shape letters: b batch, t text positions, m images in the whole batch, c channels, h height, w width, p
patches, n media tokens per image, d width, v vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.adapters import adapters_of, has_quantized, insert_adapters, whole_state_dict
from flamingo_lite.models.card import model_card
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.connector import ConnectorConfig, build_connector
from flamingo_lite.models.cross_fusion import leave_whole_layers_to_their_forward
from flamingo_lite.models.decoding import check_assistant, check_decoding
from flamingo_lite.models.fusion import FusionConfig, build_fusion
from flamingo_lite.models.head import head_of, head_parameters
from flamingo_lite.models.language import accepted_arguments, add_new_rows
from flamingo_lite.models.packing import packed_masks
from flamingo_lite.models.parts import (
    CACHE,
    check_loading_info,
    keep_weights,
    restore_buffers,
    without_the_join,
)
from flamingo_lite.models.policy import apply_policy
from flamingo_lite.models.upload import upload
from flamingo_lite.models.vision import VisionEncoder, VisionTower
from flamingo_lite.nn.cache import Media, MediaCache
from flamingo_lite.nn.gated import gate_value
from flamingo_lite.nn.loss import chunk_rows, next_token_loss
from flamingo_lite.nn.masks import check_media_index, first_images, packed_positions


@dataclass
class VisionLanguageOutput(CausalLMOutputWithPast):
    """What the language model gives, and `token_losses` (b t): the cross-entropy of each label, 0 where nothing is
    trained, detached.
    """

    token_losses: Tensor | None = None


class VisionLanguageModel(PreTrainedModel, GenerationMixin):
    """A vision encoder, a connector and a causal LM, joined by gated cross-attention or as a prefix.

    Before the join has learned anything, and for prompts without images, its logits are those of the language
    model alone, bit for bit (cross-attention: with all gates at 0; prefix: where no image stands).
    """

    config_class = VisionLanguageConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    # Residual streams must not be cut by a device map. Decoder layers, with the blocks in them, are named by the
    # language model's own class, and added to these.
    _no_split_modules = ["VisionEncoder", "LinearProjector", "MLPProjector", "PerceiverResampler", "QFormer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: VisionLanguageConfig,
        vision: VisionEncoder | None = None,
        language: PreTrainedModel | None = None,
    ) -> None:
        """`vision` and `language` are the loaded parts; without them they are made from the config, weights
        random.
        """
        super().__init__(config)
        self.vision = vision or VisionEncoder(VisionTower(**config.vision_tower))
        self.connector = build_connector(
            self.vision.width,
            self.vision.patches,
            config.text_config.get_text_config().hidden_size,
            ConnectorConfig(**config.connector),
        )
        keep_weights(self.connector)
        self.language = language or AutoModelForCausalLM.from_config(config.language_config())
        # An outer config resets this to None, and masks made from it (static caches) would be dropped
        # silently.
        config.text_config._attn_implementation = self.language.config._attn_implementation
        add_new_rows(self.language, config.first_new_token, config.new_tokens)
        self.fusion = FusionConfig(**config.fusion)
        self.fuse = build_fusion(self.language, self.connector.width, self.fusion, config.image_token_id)
        self.blocks = self.fuse.blocks
        self.generation_config = copy.deepcopy(self.language.generation_config)
        # Some configs (MPT's) switch the cache off, and generation without it is quadratic.
        self.generation_config.use_cache = True
        self.accepted = accepted_arguments(self.language)
        self.post_init()
        insert_adapters(self, adapters_of(self))
        apply_policy(self, config.policy)

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers', but a directory that lacks weights is a FlamingoError, never a silent random
        start; what trains and the vision encoder are never quantized.
        """
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = without_the_join(kwargs["quantization_config"])
        try:
            loaded: Any = super().from_pretrained(
                path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except ImportError as error:
            raise FlamingoError(
                f"cannot load {path}: {error}; device maps need flamingo_lite[device-map], quantized weights "
                "flamingo_lite[quantized]"
            ) from error
        model, info = loaded  # a pair only with output_loading_info
        check_loading_info(info, f"{path}: weights and config.json do not belong together")
        tower = VisionTower(**model.config.vision_tower)
        restore_buffers(model.vision, lambda: VisionEncoder(tower))
        apply_policy(model, model.config.policy)
        return (model, info) if output_loading_info else model

    # The forward pass.

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        segment_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        media_index: Tensor | None = None,
        media_first: Tensor | None = None,
        connector_text_ids: Tensor | None = None,
        connector_text_mask: Tensor | None = None,
        media: MediaCache | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items: Tensor | int | None = None,
        loss_weights: Tensor | None = None,
        vision_features: Tensor | None = None,
        **kwargs: Any,
    ) -> VisionLanguageOutput:
        """`.loss` and `.logits` (b t v); the fields of `Batch` are described in design.md, section 4.

        In training with labels the loss is computed in chunks and `.logits` is None. `loss_weights` (b t) of the
        labels: the loss is sum(weight * cross-entropy) / `num_items`, the number of trained tokens over all ranks and
        accumulation steps; by default the sum of this batch's weights, or its number of trained tokens.
        `media`: images encoded before, in place of `pixel_values`; `vision_features` (m p d): what `patch_features` gave
        of them. Raises FlamingoError for a media index or `<image>` marks that do not fit the images, and for packing
        where the language model cannot keep documents apart.
        """
        if media_index is None:
            media_index = torch.full_like(input_ids, -1)
        if media is None:
            images = pixel_values if vision_features is None else vision_features
            media = self._images(images, media_index, connector_text_ids, connector_text_mask)
        else:
            check_media_index(media_index, len(media), exact=False)
        is_encoded = vision_features is not None and len(vision_features) > 0
        tokens = media.tokens(self.connector if is_encoded else self.encode_images)
        seen = Media(media, tokens, media_index, media_first, is_packed=segment_ids is not None)
        past = past_key_values if cache is None else cache  # the two names that transformers has for it
        inputs = self._text_inputs(input_ids, attention_mask, position_ids, segment_ids, past)
        inputs = {
            **kwargs,
            **inputs,
            "use_cache": use_cache if labels is None else False,
            "return_dict": True,
        }
        inputs, reading = self.fuse(inputs, seen)
        with reading:
            if labels is not None and self.training and (head := head_of(self.language)) is not None:
                hidden = self.language.base_model(**inputs).last_hidden_state
                return self._loss_in_chunks(hidden, labels, head, num_items, loss_weights)
            if "logits_to_keep" in self.accepted:
                inputs["logits_to_keep"] = logits_to_keep
            out: Any = self.language(**inputs)
        if labels is not None:
            out.loss, out["token_losses"] = next_token_loss(
                out.logits, labels, nn.Identity(), num_items, loss_weights
            )
        return out

    def _loss_in_chunks(
        self,
        hidden: Tensor,
        labels: Tensor,
        head: Callable[[Tensor], Tensor],
        num_items: Tensor | int | None,
        weights: Tensor | None,
    ) -> VisionLanguageOutput:
        chunk = chunk_rows(self.config.text_config.get_text_config().vocab_size)
        trains = head_parameters(self.language)
        loss, token_losses = next_token_loss(hidden, labels, head, num_items, weights, trains, chunk)
        return VisionLanguageOutput(loss=loss, token_losses=token_losses)

    def encode_images(self, pixel_values: Tensor, *text: Tensor) -> Tensor:
        """(m c h w) -> media tokens (m n d). Without gradient through a vision encoder that does not
        train. `text`: ids and mask (m s) of what the connector reads beside each image, if it reads any.
        """
        return self.connector(self.patch_features(pixel_values), *text)

    def patch_features(self, pixel_values: Tensor) -> Tensor:
        """(m c h w) -> what the vision encoder gives (m p d), all that a connector reads of an image."""
        trains = any(p.requires_grad for p in self.vision.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            return self.vision(pixel_values.to(next(self.vision.parameters()).dtype))

    def _images(
        self,
        pixel_values: Tensor | None,
        media_index: Tensor,
        text_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> MediaCache:
        images = 0 if pixel_values is None else len(pixel_values)
        check_media_index(media_index, images, exact=True)
        if not images:
            return self.no_media()
        if text_ids is None:
            return MediaCache(pixel_values=pixel_values)
        if not self.connector.reads_text:
            raise FlamingoError(
                "connector_text_ids were given to a connector that reads no text; leave them out, or build a Q-Former "
                "with connector.text=true"
            )
        text = (text_ids, torch.ones_like(text_ids) if text_mask is None else text_mask)
        return MediaCache(pixel_values=pixel_values, text=text)

    def no_media(self) -> MediaCache:
        """The cache of no images; in training one blank image that no position reads, so that every parameter
        still has a gradient."""
        like = next(self.vision.parameters())
        if self.training and torch.is_grad_enabled():
            blank = torch.zeros(1, 3, *self.vision.image_size, dtype=like.dtype, device=like.device)
            return MediaCache(pixel_values=blank)
        none = torch.zeros(
            0, self.connector.tokens, self.connector.width, dtype=like.dtype, device=like.device
        )
        return MediaCache(media=none)

    def _text_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        segment_ids: Tensor | None,
        past_key_values: Any,
    ) -> dict[str, Any]:
        if segment_ids is not None and position_ids is None:
            position_ids = packed_positions(segment_ids)
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            attention_mask = attention_mask.long()  # ALiBi families add it up
            if position_ids is None:
                position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        mask: Any = attention_mask
        if segment_ids is not None:
            mask = packed_masks(self.language, segment_ids, attention_mask)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": mask,
            CACHE: past_key_values,
        }
        if position_ids is not None and "position_ids" in self.accepted:
            inputs["position_ids"] = position_ids
        return inputs

    # Generation.

    # Narrower than transformers': everything but the prompt is given by name.
    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:  # pyrefly: ignore[bad-override]
        """transformers' `generate` with the fields of a `Batch` (labels and position ids are not needed).

        Images are encoded and projected once, shared by beams and samples; `<image>` is never generated; a
        new token sees what its row's last token saw. Raises FlamingoError for a media index that does not fit
        the images, and for ways of decoding that cannot be had (decoding.py).
        """
        check_decoding(kwargs, kwargs.get("generation_config") or self.generation_config)
        for name in ("labels", "position_ids"):
            kwargs.pop(name, None)
        if kwargs.pop("segment_ids", None) is not None:
            raise FlamingoError(
                "packed documents (segment_ids) cannot be continued; generate from one document per row"
            )
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is None:
            raise FlamingoError("generate needs input_ids: a prompt of at least one token per row")
        pixel_values, media = kwargs.pop("pixel_values", None), kwargs.pop("media", None)
        text = [kwargs.pop(name, None) for name in ("connector_text_ids", "connector_text_mask")]
        media_index = kwargs.pop("media_index", None)
        if media_index is None:
            media_index = torch.full_like(input_ids, -1)
        if kwargs.get("attention_mask") is not None:
            # Whoever padded (a pipeline, say) may not know that padding reads no image.
            is_padding = kwargs["attention_mask"][:, : media_index.shape[1]] == 0
            media_index = media_index.masked_fill(is_padding, -1)
        if kwargs.get("assistant_model") is not None:
            check_assistant(self, kwargs["assistant_model"], is_encoded=media is not None)
        if media is None:
            media = self._images(pixel_values, media_index, *text)
        if self.fusion.sees == "all_previous" and kwargs.get("media_first") is None:
            kwargs["media_first"] = first_images(media_index).contiguous()
        settings = kwargs.get("generation_config") or self.generation_config
        named = kwargs.pop("suppress_tokens", None) or getattr(settings, "suppress_tokens", None)
        suppressed = {*(named or ()), self.config.image_token_id}
        # transformers' protocol of its host names attributes that only some models have (encoder).
        return super().generate(  # pyrefly: ignore[bad-argument-type]
            input_ids, media=media, media_index=media_index, suppress_tokens=sorted(suppressed), **kwargs
        )

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: continuous batching packs rows without their images."""
        raise FlamingoError(
            "continuous batching (generate_batch) hands no images to the model; use generate, or flamingo_lite.generate"
        )

    # Narrower than transformers', which passes all but the ids by name.
    def prepare_inputs_for_generation(  # pyrefly: ignore[bad-override]
        self, input_ids: Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Media indices grow by repeating each row's last one, and are cut by what the cache has already
        seen.
        """
        indices = {name: kwargs.pop(name, None) for name in ("media_index", "media_first")}
        cache = kwargs.pop("cache", None)
        past = past_key_values if cache is None else cache
        # The same protocol, and ids typed as LongTensor.
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # pyrefly: ignore[bad-argument-type]
            input_ids,  # pyrefly: ignore[bad-argument-type]
            **{CACHE: past},
            **kwargs,
        )
        seen = 0 if past is None else int(past.get_seq_length())
        length = inputs["input_ids"].shape[1]
        for name, index in indices.items():
            if index is not None:
                new = index[:, -1:].expand(-1, max(0, seen + length - index.shape[1]))
                inputs[name] = torch.cat((index, new), dim=1)[:, seen : seen + length]
        return inputs

    # What transformers asks of a model.

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """transformers' own, and a model card beside the weights, unless a README.md is there. Weights of four bits
        are read back: loading makes the same four bits of them.
        """
        if has_quantized(self):
            kwargs.setdefault("state_dict", whole_state_dict(self))
        super().save_pretrained(save_directory, *args, **kwargs)
        card = Path(save_directory) / "README.md"
        if not card.exists() and kwargs.get("is_main_process", True):
            card.write_text(model_card(self), encoding="utf-8")

    # Narrower than transformers', whose own card would replace ours.
    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # pyrefly: ignore[bad-override]
        """Upload model, card and, with `processor=`, the processor; see `upload` for the options."""
        return upload(self, repo_id, **options)

    def train(self, mode: bool = True) -> Self:
        """A vision encoder that does not train stays in evaluation mode: no patch is dropped."""
        super().train(mode)
        if not any(p.requires_grad for p in self.vision.parameters()):
            self.vision.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.language.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return self.language.get_output_embeddings()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Refused: it would shift the ids of the new tokens."""
        raise FlamingoError(
            "resize_token_embeddings would shift the ids of <image> and the other new tokens; "
            "add tokens to the language model and its tokenizer before building the model"
        )

    def _replicate_for_data_parallel(self) -> Self:
        raise FlamingoError(
            "DataParallel slices a batch along its rows and would part texts from their images; "
            "use DistributedDataParallel or one device"
        )

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        leave_whole_layers_to_their_forward(self.language)

    def gate_values(self) -> dict[int, tuple[float, float]]:
        """How far the two gates (attention, feed-forward) of each block are open, by decoder layer."""
        return {
            i: (gate_value(block.attention_gate), gate_value(block.feed_forward_gate))
            for i, block in self.blocks.items()
        }


AutoModel.register(VisionLanguageConfig, VisionLanguageModel)
AutoModelForCausalLM.register(VisionLanguageConfig, VisionLanguageModel)
AutoModelForImageTextToText.register(VisionLanguageConfig, VisionLanguageModel)
