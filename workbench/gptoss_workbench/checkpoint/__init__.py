"""Checkpoints: opened without a copy, checked before use, described without loading, written whole.

checkpoint = open_checkpoint("openai/gpt-oss-20b")
tensors = checkpoint.tensors()        # Hugging Face names, memory-mapped, experts packed
print(checkpoint_info("/models/gpt-oss-20b"))
"""

from gptoss_workbench.checkpoint.errors import CheckpointError, NotEnoughMemory
from gptoss_workbench.checkpoint.info import CheckpointInfo, checkpoint_info
from gptoss_workbench.checkpoint.memory import check_memory, memory_needed
from gptoss_workbench.checkpoint.memory_plan import longest_context, memory_plan
from gptoss_workbench.checkpoint.open import Checkpoint, open_checkpoint
from gptoss_workbench.checkpoint.save import save_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointInfo",
    "NotEnoughMemory",
    "check_memory",
    "checkpoint_info",
    "longest_context",
    "memory_needed",
    "memory_plan",
    "open_checkpoint",
    "save_checkpoint",
]
