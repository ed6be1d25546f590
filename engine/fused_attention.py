"""Llama's attention in half the operations: one product for queries, keys and values, one rotation for both."""

from typing import Any

from torch import Tensor, cat, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from trimtab.engine.kv import PagedLayer
from trimtab.engine.packing import FusedChild, PackedLinear, PackedMatmul


class FusedAttention(nn.Module):
    """Stands in for an attention module of Llama's form, over paged keys and values alone."""

    def __init__(self, plain: Any, qkv: PackedMatmul) -> None:
        super().__init__()
        self.qkv = qkv
        self.o_proj: nn.Module = plain.o_proj
        self.layer_idx: int = plain.layer_idx
        self.scaling: float = plain.scaling
        self.head_dim: int = plain.head_dim
        self.heads = qkv.sizes[0] // self.head_dim
        self.kv_heads = qkv.sizes[1] // self.head_dim
        # Some modules have a window of their own, others leave it to their config. In a tuple: not a submodule.
        self._windowed = (plain if hasattr(plain, "sliding_window") else plain.config,)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """As the plain module's; `hidden_states` (B, q, hidden), `position_embeddings` cos and sin (B, q, D)."""
        assert past_key_values is not None
        layer = past_key_values.layers[self.layer_idx]
        assert isinstance(layer, PagedLayer)
        rows, queries, _ = hidden_states.shape
        cos, sin = position_embeddings
        qkv = self.qkv(hidden_states).view(rows, queries, -1, self.head_dim)  # (B, q, heads + 2 kv_heads, D)
        turning = qkv[:, :, : self.heads + self.kv_heads]
        first, second = turning.chunk(2, dim=-1)
        turned = cat((-second, first), dim=-1)
        turning.mul_(cos.unsqueeze(2)).addcmul_(turned, sin.unsqueeze(2))
        layer.write(qkv[:, :, self.heads :].view(rows, queries, 2, self.kv_heads, self.head_dim))
        window: int | None = getattr(self._windowed[0], "sliding_window", None)
        out = layer.attend(qkv[:, :, : self.heads].transpose(1, 2), self.scaling, window)
        return self.o_proj(out.reshape(rows, queries, -1)), None


def fuse_attention(model: PreTrainedModel) -> list[FusedChild]:
    """Replace the attention modules that look like Llama's; the caller checks that the logits stay the same.

    Needs packed, merged projections. What tells the form apart is what the module holds; a formula that differs all
    the same (another rotation, say) shows in the logits.
    """
    replaced = []
    for parent in list(model.modules()):
        plain = parent._modules.get("self_attn")
        if plain is None or any(hasattr(plain, name) for name in ("q_norm", "k_norm", "sinks")):
            continue
        parts = [plain._modules.get(name) for name in ("q_proj", "k_proj", "v_proj")]
        groups = {id(part.matmul) for part in parts if isinstance(part, PackedLinear)}
        known = all(hasattr(plain, name) for name in ("o_proj", "layer_idx", "scaling", "head_dim"))
        if len(groups) == 1 and None not in parts and known:
            assert isinstance(parts[0], PackedLinear)
            parent._modules["self_attn"] = FusedAttention(plain, parts[0].matmul)
            replaced.append(FusedChild(parent, "self_attn", plain))
    return replaced
