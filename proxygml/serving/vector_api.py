"""The routes of a gallery whose model takes vectors: search, embed and add with one; api.py has those of images."""

import json
from typing import Annotated

import torch
from fastapi import FastAPI, Form
from fastapi.params import Depends as Dependency
from torch import Tensor

from proxygml.data.vectors.checks import checked_matrix
from proxygml.errors import counted
from proxygml.serving.answers import Added, Embedding, SearchAnswer, search_answer
from proxygml.serving.forms import WHERE, read_conditions, read_item
from proxygml.serving.limits import RequestError
from proxygml.serving.refusals import describe_refusals
from proxygml.serving.service import Service

_REFUSALS = describe_refusals(413, 422, 429, 503)
_CHANGE = describe_refusals(401, 403, 409)

VectorText = Annotated[str, Form(description="numbers, as JSON ([0.1, -2, ...]) or separated by commas or spaces")]


def add_vector_questions(app: FastAPI, service: Service) -> None:
    """Search and embed with a vector of the size that the model takes."""
    size = service.embedder.num_features

    @app.post("/search", responses=_REFUSALS)
    async def search(
        vector: VectorText,
        k: Annotated[int, Form(ge=1, le=service.limits.max_k)] = min(10, service.limits.max_k),
        where: Annotated[list[str], Form(description=WHERE)] = [],  # noqa: B006
    ) -> SearchAnswer:
        """The items most similar to a vector."""
        async with service.admitted():
            embedded = await service.model.embed(read_vector(vector, size))
            return search_answer(await service.search(embedded, k, read_conditions(where)))

    @app.post("/embed", responses=_REFUSALS)
    async def embed(vector: VectorText) -> Embedding:
        """The embedding of a vector."""
        async with service.admitted():
            embedded = await service.model.embed(read_vector(vector, size))
        return Embedding(embedding=embedded.tolist(), model=service.gallery.manifest.model)


def add_vector_additions(app: FastAPI, service: Service, authorised: Dependency) -> None:
    """Add an item that is a vector."""
    size = service.embedder.num_features

    @app.post("/items", status_code=201, responses=_REFUSALS | _CHANGE, dependencies=[authorised])
    async def add(
        vector: VectorText,
        column: Annotated[list[str], Form(description="column=value, such as label=sparrow")] = [],  # noqa: B006
    ) -> Added:
        """Add a vector; it is on disk when this answers."""
        cells = read_item(column)
        async with service.admitted():
            embedded = await service.model.embed(read_vector(vector, size))
            return Added(id=await service.add_vector(embedded, cells))


def read_vector(text: str, size: int) -> Tensor:
    """The vector in a field of a form, float32 (F,).

    Raises:
        RequestError: 422 for what is no such vector.
    """
    try:
        cells = json.loads(text) if text.lstrip().startswith("[") else text.replace(",", " ").split()
        numbers = [float(cell) for cell in cells if not isinstance(cell, bool)]
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise RequestError(422, f"vector is no list of numbers: send {size}, as JSON or separated by commas") from None
    if len(numbers) != size:
        raise RequestError(422, f"vector has {counted(len(numbers), 'number')}, but the model takes {size:,}")
    found = torch.tensor(numbers, dtype=torch.float32)
    _, problems = checked_matrix(found[None].numpy())
    for problem in problems.values():
        raise RequestError(422, f"vector holds {problem}")
    return found
