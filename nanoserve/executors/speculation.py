"""Makes an executor speculate: what `Engine.draft` names guesses, and the model that it has verifies.

Next: `verifying`, `drafting`.
"""

from nanoserve.engine.config import EngineConfig
from nanoserve.executors.drafting import Drafter, ModelDrafter, NgramDrafter
from nanoserve.executors.host_pages import HostPages
from nanoserve.executors.jax_build import LoadedModel, empty_state
from nanoserve.executors.jax_executor import JaxExecutor
from nanoserve.executors.verifying import VerifyingCalls
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import check_draft


def speculate(
    executor: JaxExecutor, model: LoadedModel, config: EngineConfig, draft: LoadedModel | None = None
) -> JaxExecutor:
    """Exchanges an executor's calls for those of speculation; compiles nothing yet.

    Args:
      executor: fresh, of the target. model: the target. config: who guesses, and how much.
      draft: the draft model, on the target's devices, where `config.draft` is `model`.

    Raises:
      ConfigError: there is no draft model, or its vocabulary is not the target's.
    """
    executor.calls = VerifyingCalls(
        executor,
        _drafter(executor, model, config, draft),
        model.speculative.verify,
        most_tokens=config.max_step_tokens,
        row_tokens=config.row_tokens,
        window_tokens=model.spec.sliding_window_tokens,
    )
    return executor


def _drafter(executor: JaxExecutor, model: LoadedModel, config: EngineConfig, draft: LoadedModel | None) -> Drafter:
    if config.draft == "ngram":
        return NgramDrafter(config.ngram_tokens, config.ngram_least_tokens)
    if draft is None:
        raise ConfigError("Engine.draft = 'model' needs a draft model: give Experiment.draft_model")
    check_draft(model.spec, draft.spec)
    drafter = ModelDrafter(
        steps=draft.steps_with(executor.arrays.sampling.sampler),
        speculative=draft.speculative,
        params=draft.params,
        state=empty_state(draft, config, executor.state.pool.pages.shape[1]),
        arrays=executor.arrays,
        key=executor.key,
        draft_tokens=config.draft_tokens,
        put=executor.put,
    )
    if config.preemption != "recompute":
        executor.movers.append(HostPages(drafter, executor.ladders.table_pages, draft.places))
    return drafter
