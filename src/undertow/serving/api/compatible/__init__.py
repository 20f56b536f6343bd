"""The service in the words of others: OpenAI's images, A1111's API, Hugging Face's task, and MCP for agents.

Each is a translation: a pure function from their JSON to what `Admission` takes, and from a finished job to theirs.
What they can say and undertow cannot do is refused by name, in their form of refusal; nothing is ignored.
"""
