"""The shapes of what the server answers to a search, an embedding and an addition."""

from pydantic import BaseModel, Field

from proxygml.serving.service import Answer


class Found(BaseModel, extra="allow"):
    """An item that was found; the columns of the gallery's table come as further keys."""

    rank: int
    score: float = Field(description="cosine similarity, -1..1")
    id: int


class Guess(BaseModel):
    """The class that the neighbours vote for."""

    label: str | None = Field(description="null for none of the gallery's classes")
    share: float = Field(description="of all votes, 0..1")


class SearchAnswer(BaseModel):
    """The nearest items, best first."""

    items: list[Found]
    prediction: Guess | None


class Embedding(BaseModel):
    """A vector of length 1, and the fingerprint of the model that it is of."""

    embedding: list[float]
    model: str


class Added(BaseModel):
    """The id of an item that is now on disk."""

    id: int


def search_answer(answer: Answer) -> SearchAnswer:
    """What a search found, as JSON has it."""
    voted = answer.prediction
    guess = None if voted is None else Guess(label=voted.label, share=voted.share)
    return SearchAnswer(items=[Found(**item) for item in answer.items], prediction=guess)
