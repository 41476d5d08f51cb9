"""What the adapters use of vLLM, in one table: names, arguments, and methods on whose order of steps rewards depend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Used:
    """A function, class, method or attribute (``Class.name``) of a ``file`` of vLLM's, and ``why`` it has to be there.

    ``takes`` are the arguments of a function that is called, or of one that is overridden; it may want no others. ``order`` are
    the digests of its source in the versions that were read, for methods on whose order of steps rewards depend.
    """

    file: str
    name: str
    why: str
    takes: tuple[str, ...] | None = None
    order: tuple[str, ...] = ()


WORKER, RUNNER, RUNNER2 = "v1/worker/gpu_worker.py", "v1/worker/gpu_model_runner.py", "v1/worker/gpu/model_runner.py"
BATCH, BATCH2 = "v1/worker/gpu_input_batch.py", "v1/worker/gpu/input_batch.py"
SCHEDULED, MODELS, PROCESSORS = "v1/core/sched/output.py", "model_executor/models/interfaces.py", "v1/sample/logits_processor"
ENGINE, ASYNC, OUTPUTS = "v1/engine/llm_engine.py", "v1/engine/async_llm.py", "outputs.py"
NAMING, CHILDREN = "v1/engine/input_processor.py", "v1/engine/parallel_sampling.py"
REGISTRY = "model_executor/models/registry.py"
CONFIG, PARALLEL, MODEL = "config/vllm.py", "config/parallel.py", "config/model.py"
START = ("vllm_config", "local_rank", "rank", "distributed_init_method", "is_driver_worker")

USED = (
    # The worker, around whose steps the scoring one stands.
    Used("v1/worker/cpu_worker.py", "CPUWorker.__init__", "the scoring worker on a CPU extends it", START),
    Used(WORKER, "Worker.__init__", "the scoring worker on a GPU extends it", START),
    Used(WORKER, "Worker.load_model", "layers are asked for when it returns", ("load_dummy_weights",)),
    Used(WORKER, "Worker.execute_model", "states are read when it returns", ("scheduler_output",), ("d4d0421fc360447c",)),
    Used(WORKER, "Worker.use_v2_model_runner", "tells which runner the rows are read of"),
    Used(WORKER, "Worker.model_runner", "holds the step's states"),
    Used("v1/worker/worker_base.py", "WorkerBase.rank", "rank 0 scores"),
    Used("v1/worker/worker_base.py", "WorkerBase.device", "the heads are put there"),
    # The V1 runner's step, in the order in which it is read: rows, forward pass, state.
    Used(RUNNER, "GPUModelRunner.execute_model", "makes the state that is read", ("scheduler_output",), ("150c2d50d2bcd93d",)),
    Used(RUNNER, "GPUModelRunner._prepare_inputs", "puts the rows into the batch's order", None, ("a4a0cd30079dba11",)),
    Used(RUNNER, "GPUModelRunner.get_model", "shows the layers", ()),
    Used(RUNNER, "GPUModelRunner.use_aux_hidden_state_outputs", "makes it return the layers"),
    Used(RUNNER, "GPUModelRunner.query_start_loc", "where each request's rows begin"),
    Used(RUNNER, "GPUModelRunner.execute_model_state", "holds the step's states"),
    Used(RUNNER, "ExecuteModelState.hidden_states", "the last layer"),
    Used(RUNNER, "ExecuteModelState.aux_hidden_states", "the other layers"),
    Used(BATCH, "InputBatch.num_reqs", "how many requests a step has"),
    Used(BATCH, "InputBatch.req_ids", "whose rows they are"),
    Used(BATCH, "InputBatch.num_computed_tokens_cpu", "at which token a request's rows begin"),
    Used(BATCH, "InputBatch.num_prompt_tokens", "where its response begins"),
    Used(BATCH, "InputBatch.logitsprocs", "holds the processor that reads logits"),
    # The V2 runner's.
    Used(RUNNER2, "GPUModelRunner.execute_model", "makes the state that is read", ("scheduler_output",),
         ("7485f76799e90bb0", "b1ffb190e7016cf3")),  # 0.32, 0.33
    Used(RUNNER2, "GPUModelRunner.prepare_inputs", "puts the rows into the batch's order", None,
         ("6204a5ed37c55b1d", "70372d502c93bc69")),  # 0.32, 0.33
    Used(RUNNER2, "GPUModelRunner.gather_batch_req_state", "orders the requests", None, ("0e38b983038c2e59",)),
    Used(RUNNER2, "GPUModelRunner.get_model", "shows the layers", ()),
    Used(RUNNER2, "GPUModelRunner.use_aux_hidden_state_outputs", "makes it return the layers"),
    Used(RUNNER2, "GPUModelRunner.req_states", "knows the prompts' lengths"),
    Used(RUNNER2, "GPUModelRunner.execute_model_state", "holds the step's states"),
    Used(RUNNER2, "ExecuteModelState.input_batch", "the step's requests and rows"),
    Used(RUNNER2, "ExecuteModelState.hidden_states", "the last layer"),
    Used(RUNNER2, "ExecuteModelState.aux_hidden_states", "the other layers"),
    Used(BATCH2, "InputBatch.num_reqs", "how many requests a step has"),
    Used(BATCH2, "InputBatch.req_ids", "whose rows they are"),
    Used(BATCH2, "InputBatch.query_start_loc_np", "where each request's rows begin"),
    Used(BATCH2, "InputBatch.num_computed_tokens_np", "at which token a request's rows begin"),
    Used(BATCH2, "InputBatch.idx_mapping_np", "finds a request's prompt length"),
    Used("v1/worker/gpu/states.py", "RequestState.prompt_len", "where a response begins"),
    # What the scheduler asks for, with which rows are compared.
    Used(SCHEDULED, "SchedulerOutput.num_scheduled_tokens", "rows are counted by it"),
    Used(SCHEDULED, "SchedulerOutput.total_num_scheduled_tokens", "rows are counted by it"),
    Used(SCHEDULED, "SchedulerOutput.scheduled_spec_decode_tokens", "drafts are refused"),
    Used(SCHEDULED, "SchedulerOutput.scheduled_new_reqs", "these requests begin, or begin again"),
    Used(SCHEDULED, "SchedulerOutput.scheduled_cached_reqs", "these go on"),
    Used(SCHEDULED, "SchedulerOutput.finished_req_ids", "these are forgotten"),
    Used(SCHEDULED, "NewRequestData.req_id", "these requests begin, or begin again"),
    Used(SCHEDULED, "CachedRequestData.resumed_req_ids", "these begin again after preemption"),
    # The layers, as EAGLE-3 asks for them: layer k is the sum that goes into block k, and they come sorted.
    Used(MODELS, "supports_eagle3", "which models show layers", ("model",)),
    Used(MODELS, "SupportsEagle3.set_aux_hidden_state_layers", "asks for layers", ("layers",), ("aa1edbe3b7b6f2e4",)),
    Used(MODELS, "EagleModelMixin._set_aux_hidden_state_layers", "sorts them", ("layers",), ("b161ad65aae88fe9",)),
    Used(MODELS, "EagleModelMixin._maybe_add_hidden_state", "what a layer's state is", None, ("b054ef4489e96e3f",)),
    Used("model_executor/models/llama.py", "LlamaModel.forward", "how layers are numbered", None, ("eb822afa91ec883f",)),
    # Logits, by a V1 logits processor.
    Used(f"{PROCESSORS}/interface.py", "LogitsProcessor.__init__", "is overridden", ("vllm_config", "device", "is_pin_memory")),
    Used(f"{PROCESSORS}/interface.py", "LogitsProcessor.apply", "sees the logits", ("logits",)),
    Used(f"{PROCESSORS}/interface.py", "LogitsProcessor.is_argmax_invariant", "is overridden", ()),
    Used(f"{PROCESSORS}/interface.py", "LogitsProcessor.update_state", "is overridden", ("batch_update",)),
    Used(f"{PROCESSORS}/interface.py", "LogitsProcessor.validate_params", "refuses requests", ("sampling_params",)),
    Used(f"{PROCESSORS}/state.py", "LogitsProcessors.all", "finds the processor"),
    Used("v1/sample/sampler.py", "Sampler.apply_logits_processors", "logits come before penalties", None, ("4cfeb69c79ba34ee",)),
    Used("v1/sample/sampler.py", "Sampler.sample", "logits come before temperature", None, ("656d27303186fef1",)),
    # What requests are called inside.
    Used(NAMING, "InputProcessor.assign_request_id", "adds 9 characters", ("request",), ("d3fdbb70f6b708f8",)),
    Used(CHILDREN, "ParentRequest.get_child_info", "names the n samples", ("index",), ("a1d7d5485c43d152",)),
    Used("envs.py", "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "whether characters are added"),
    # The engines.
    Used("entrypoints/llm.py", "LLM.collective_rpc", "asks the worker for scores", ("method", "args")),
    Used("entrypoints/llm.py", "LLM.get_tokenizer", "encodes prompts", ()),
    Used("entrypoints/llm.py", "LLM.llm_engine", "is run step by step"),
    Used(ENGINE, "LLMEngine.add_request", "asks for samples", ("request_id", "prompt", "params")),
    Used(ENGINE, "LLMEngine.step", "gives outputs", ()),
    Used(ENGINE, "LLMEngine.abort_request", "early stopping", ("request_ids",)),
    Used(ENGINE, "LLMEngine.has_unfinished_requests", "when all is done", ()),
    Used(ENGINE, "LLMEngine.renderer", "makes prompts of token ids"),
    Used(ENGINE, "LLMEngine.engine_core", "is shut down"),
    Used(ENGINE, "LLMEngine.vllm_config", "settings are checked"),
    Used("renderers/base.py", "BaseRenderer.render_cmpl", "makes prompts of token ids", ("prompts",)),
    Used("engine/arg_utils.py", "EngineArgs.create_engine_config", "settings are checked first", ()),
    Used(REGISTRY, "_ModelRegistry.resolve_model_cls", "which model class", ("architectures", "model_config")),
    Used(ASYNC, "AsyncLLM.collective_rpc", "the server asks for scores", ("method", "args")),
    Used(ASYNC, "AsyncLLM.generate", "the state at the last token", ("prompt", "sampling_params", "request_id")),
    Used(ASYNC, "AsyncLLM.errored", "whether the engine lives"),
    Used(ASYNC, "AsyncLLM.renderer", "has the server's tokenizer"),
    Used(OUTPUTS, "RequestOutput.request_id", "whose output"),
    Used(OUTPUTS, "RequestOutput.finished", "when it is whole"),
    Used(OUTPUTS, "CompletionOutput.index", "which sample"),
    Used(OUTPUTS, "CompletionOutput.token_ids", "tokens are counted"),
    Used(OUTPUTS, "CompletionOutput.cumulative_logprob", "a candidate's log-probability"),
    Used(OUTPUTS, "CompletionOutput.finish_reason", "why a sample ended"),
    *(Used("sampling_params.py", f"SamplingParams.{name}", "how samples are drawn")
      for name in ("n", "temperature", "seed", "max_tokens", "logprobs", "detokenize", "output_kind", "logit_bias",
                   "allowed_token_ids", "bad_words", "min_tokens", "structured_outputs")),
    *(Used("sampling_params.py", f"RequestOutputKind.{name}", "what outputs bring") for name in ("FINAL_ONLY", "DELTA")),
    Used("exceptions.py", "VLLMValidationError", "becomes a ValueError"),
    Used("v1/engine/exceptions.py", "EngineDeadError", "becomes one sentence"),
    # Settings that are read, and refused.
    *(Used(CONFIG, f"VllmConfig.{name}", "settings are read")
      for name in ("model_config", "parallel_config", "cache_config", "scheduler_config", "speculative_config",
                   "compilation_config", "device_config", "additional_config", "use_v2_model_runner")),
    *(Used(PARALLEL, f"ParallelConfig.{name}", "is refused beyond what works")
      for name in ("pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size",
                   "distributed_executor_backend", "worker_cls")),
    *(Used(MODEL, f"ModelConfig.{name}", "the served model is checked")
      for name in ("model", "runner_type", "is_diffusion", "hf_text_config", "max_model_len", "logits_processors", "dtype",
                   "get_vocab_size", "architectures", "registry")),
    Used("config/cache.py", "CacheConfig.kv_sharing_fast_prefill", "is refused"),
    Used("config/scheduler.py", "SchedulerConfig.max_num_batched_tokens", "seeds on a CPU"),
    Used("config/compilation.py", "CompilationConfig.mode", "layer 0 without compilation is refused"),
    Used("config/device.py", "DeviceConfig.device_type", "is reported"),
    Used("platforms/interface.py", "Platform.is_cpu", "which worker", ()),
    Used("platforms/interface.py", "Platform.is_cuda_alike", "which worker", ()),
    # The server's replies.
    *(Used(f"entrypoints/openai/{kind}/protocol.py", name, "carries the token ids that are counted")
      for kind, name in (("chat_completion", "ChatCompletionRequest.return_token_ids"),
                         ("chat_completion", "ChatCompletionResponse.prompt_token_ids"),
                         ("chat_completion", "ChatCompletionResponseChoice.token_ids"),
                         ("chat_completion", "ChatCompletionResponseStreamChoice.token_ids"),
                         ("chat_completion", "ChatCompletionStreamResponse.prompt_token_ids"),
                         ("completion", "CompletionRequest.return_token_ids"),
                         ("completion", "CompletionResponseChoice.token_ids"),
                         ("completion", "CompletionResponseChoice.prompt_token_ids"),
                         ("completion", "CompletionResponseStreamChoice.token_ids"),
                         ("completion", "CompletionResponseStreamChoice.prompt_token_ids"))),
    Used("entrypoints/openai/models/serving.py", "OpenAIServingModels.lora_requests", "an adapter's answers have no rewards"),
)  # fmt: skip
