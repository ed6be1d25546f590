"""How long an answer can get: every model that reads it has a context, and a page pool that must hold it."""

from collections.abc import Mapping

from trimtab.engine.duet import LONGEST_CHARACTER
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.model import Model
from trimtab.engine.plan import BASE, SteerPlan


def answer_room(models: Mapping[str, Model], prompt: int, plan: SteerPlan, *, field: str) -> int:
    """Tokens that the answer to a prompt of `prompt` tokens may have; `field` holds the prompt in the request.

    Raises InvalidRequest, which names the model, if that is less than the request wants, or nothing.
    """
    wanted = plan.sampling.max_tokens
    room = models[BASE].context_length - prompt
    if plan.gate is not None and models[BASE].remote is not None:  # a draft is read there in one call, whole
        room -= LONGEST_CHARACTER * plan.gate.draft + 1
    tightest = "this model's context holds", models[BASE].context_length, prompt
    lanes = [(BASE, BASE, prompt, 0)]
    for lane in plan.lanes:
        model = models[lane.model]
        spare = plan.candidate_count if lane.scores else 0
        lanes.append((lane.name, lane.model, len(lane.prompt), spare))
        left = model.context_length - len(lane.prompt) - spare
        if plan.gate is not None and left > plan.gate.draft:
            continue  # another vocabulary: where its own context ends, the answer does
        if left < room:
            whose = "this model's context holds" if lane.name == BASE else f"the context of guide {lane.name!r} holds"
            room, tightest = left, (whose, model.context_length, len(lane.prompt))
    for name, model in models.items():
        shared = [(length, spare) for _, where, length, spare in lanes if where == name]
        pool = model.runner.pool
        # Each lane may leave its last page half empty.
        tokens = pool.total * pool.page_size - sum(length + spare + pool.page_size - 1 for length, spare in shared)
        if len(shared) > 1 and tokens // len(shared) < room:
            room, held = tokens // len(shared), sum(length for length, _ in shared)
            tightest = ("the page pool (pool_tokens) holds", pool.total * pool.page_size, held)
    if room < (1 if wanted is None else wanted):
        whose, size, length = tightest
        raise InvalidRequest(
            f"{whose} {size} tokens, but the prompt has {length}"
            + (f" and max_tokens is {wanted}" if wanted is not None else "")
            + ": shorten the prompt or the answer",
            param=field,
            code="context_length_exceeded",
        )
    return room if wanted is None else wanted
