"""The numbers beside an answer: usage, and the `decoding` object that says what was done and spent."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.engine.results import Candidate, Result, Tree
from trimtab.engine.vocabulary import Vocabulary
from trimtab.server import trace
from trimtab.server.bridge import Exchange
from trimtab.server.schema.responses import CompletionUsage, PromptTokensDetails

if TYPE_CHECKING:
    from trimtab.requests import PreparedRequest


def usage(results: Sequence[Result]) -> CompletionUsage:
    """Tokens read and delivered by all prompts of a request."""
    prompt = sum(result.usage.prompt_tokens for result in results)
    completion = sum(result.usage.completion_tokens for result in results)
    cached = sum(result.usage.cached_tokens for result in results)
    return CompletionUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )


def decoding(
    prepared: "PreparedRequest",
    result: Result,
    vocabulary: Vocabulary,
    acting: Mapping[str, Any],
    *,
    trace_sent: bool = False,
) -> dict[str, Any]:
    """Resolved spec, candidates (all about them under a search), what search and steering did, cost by model and phase.

    `acting` is what is told of a preset and a policy; with `trace_sent` the stream has told the trace already. Numbers
    may be infinite or NaN: whoever writes this as JSON makes them null.
    """
    search = prepared.searches
    chosen = {c.choice: index for index, c in enumerate(result.candidates) if c.choice is not None}
    traces = [] if trace_sent else [choice.trace for choice in result.choices if choice.trace is not None]
    return {
        **acting,
        "spec": dict(prepared.decoding),
        "chosen": [chosen.get(index) for index in range(len(result.choices))],
        "candidates": [_candidate(candidate, search) for candidate in result.candidates],
        **({"report": result.report} if result.report else {}),
        "steering": [trace.summary(choice.steering) for choice in result.choices],
        **({"trace": [trace.tokens(each, vocabulary) for each in traces]} if traces else {}),
        **({} if result.tree is None else {"tree": _tree(prepared, result.tree)}),
        "model_tokens": result.usage.model_tokens,
        "forwards": result.usage.forwards,
        "milliseconds": {phase: round(ms, 3) for phase, ms in result.usage.milliseconds.items()},
        "preemptions": result.usage.preemptions,
        "stopped_by": result.stopped_by,
        "seed": result.seed,
    }


def decodings(
    exchange: Exchange, results: Sequence[Result], *, trace_sent: bool = False
) -> dict[str, Any] | list[dict[str, Any]]:
    """One report for one prompt, a list of them for several."""
    vocabulary, acting = exchange.llm.vocabulary, exchange.acting
    answered = zip(exchange.prepared, results, strict=True)
    reports = [decoding(request, result, vocabulary, acting, trace_sent=trace_sent) for request, result in answered]
    return reports[0] if len(reports) == 1 else reports


def _tree(prepared: "PreparedRequest", tree: Tree) -> dict[str, Any]:
    return trace.tree(tree, prepared.compiler.text(), prepared.plan.ends)


def _candidate(candidate: Candidate, searched: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "tokens": candidate.tokens,
        "reward": candidate.reward,
        "finish_reason": candidate.finish_reason,
        "choice": candidate.choice,
    }
    if not searched:
        return told
    told |= {"rewards": candidate.rewards, "value": candidate.value}
    if candidate.terms != candidate.rewards:
        told["terms"] = candidate.terms
    return {"text": candidate.text, **told}
