"""What deserves a fine-tuning: chosen from validation rows only, within a budget, each choice with its reason."""

from fastxfer.selection.plan import FINETUNED, Plan, select

__all__ = ["FINETUNED", "Plan", "select"]
