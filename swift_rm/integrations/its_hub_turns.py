"""its_hub's conversations as roles and texts, which can be compared and looked up."""

from __future__ import annotations

from typing import Any

try:
    from its_hub.api import ChatMessage, ChatMessages
except ImportError as error:
    raise ImportError('its_hub\'s algorithms need its_hub: pip install "swift-rm[adapters]"') from error

Turns = tuple[tuple[str, str], ...]  # role and text of each message


def turns_to_answer(messages: Any) -> Turns:
    """Return a conversation that a response follows; raise ValueError if it ends with one, is empty, or calls tools."""
    turns = _turns(messages)
    if not turns or turns[-1][0] == "assistant":
        raise ValueError(f"a conversation must end with something to answer, got {turns}")
    return turns


def answered_turns(messages: Any) -> tuple[Turns, str]:
    """Return a conversation and the response with which it ends; raise ValueError if there is none, or it calls tools."""
    turns = _turns(messages)
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise ValueError(f"a conversation to score must end with the response to a message, got {turns}")
    return turns[:-1], turns[-1][1]


def is_one(messages: Any) -> bool:
    """Tell whether these are the messages of one conversation, instead of a list of conversations."""
    return isinstance(messages, str | ChatMessages) or not messages or not isinstance(messages[0], list)


def _turns(messages: Any) -> Turns:
    if isinstance(messages, str | ChatMessages):
        messages = ChatMessages.from_prompt_or_messages(messages).to_chat_messages()
    turns = [one if isinstance(one, ChatMessage) else ChatMessage.from_dict(one) for one in messages]
    if called := [one for one in turns if one.tool_calls or one.tool_call_id]:
        raise ValueError(f"a model here neither reads nor makes calls of tools, got {called[0]}")
    return tuple((one.role, one.extract_text_content()) for one in turns)
