"""HiPO: teach a language model to choose, question by question, between thinking first and answering at once."""

from swift_rm.hipo.response.template import Mode, Parsed, Template

__all__ = ["Mode", "Parsed", "Template"]
