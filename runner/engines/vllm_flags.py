"""The flags of vLLM's OpenAI server that users may pass, and why the others may not.

Every option of the version named here is in one of the two lists: a test asks that version what it has and compares.
"""

from __future__ import annotations

from runner.engines.flags import AllowList, Flag

KNOWN_VERSION = "0.32.0"
"""The version whose options are all listed."""

_INTEGERS = (
    "--block-size", "--cp-kv-cache-interleave-size", "--cpu-distributed-timeout-seconds",
    "--dbo-decode-token-threshold", "--dbo-prefill-token-threshold", "--dcp-kv-cache-interleave-size",
    "--distributed-timeout-seconds", "--kv-cache-memory-bytes", "--long-prefill-token-threshold",
    "--mamba-block-size", "--mamba-cache-philox-rounds", "--max-cpu-loras", "--max-cudagraph-capture-size",
    "--max-log-len", "--max-logprobs", "--max-lora-cls-labels", "--max-loras", "--max-num-active-seqs",
    "--max-num-batched-tokens", "--max-num-queued-reqs", "--max-num-queued-tokens", "--max-num-scheduled-tokens",
    "--max-num-seqs", "--max-parallel-loading-workers", "--num-gpu-blocks-override", "--offload-group-size",
    "--offload-num-in-group", "--offload-prefetch-step", "--prefill-schedule-interval", "--prefix-match-unit",
    "--renderer-num-workers", "--replayssm-buffer-len", "--safetensors-prefetch-block-size",
    "--safetensors-prefetch-num-threads", "--seed", "--stream-interval", "--ubatch-size", "--shutdown-timeout",
    "--api-server-count", "--mm-shm-cache-max-object-size-mb", "--prefix-cache-retention-interval",
)  # fmt: skip
_FLOATS = (
    "--cpu-offload-gb", "--kv-cache-metrics-sample", "--kv-offloading-size",
    "--mm-encoder-fp8-scale-save-margin", "--mm-ipc-gpu-memory-gb", "--mm-processor-cache-gb",
    "--sse-keep-alive-interval", "--video-pruning-rate", "--watermark",
)  # fmt: skip
_SWITCHES = (
    "--allow-deprecated-quantization", "--async-scheduling", "--cohere-is-reasoning-model", "--cudagraph-metrics",
    "--dcp-q-replicate", "--disable-cascade-attn", "--disable-chunked-mm-input", "--disable-custom-all-reduce",
    "--disable-hybrid-kv-cache-manager", "--disable-sliding-window", "--disable-uvicorn-access-log",
    "--disable-nccl-for-dp-synchronization", "--enable-auto-tool-choice", "--enable-batch-sharded-sampling",
    "--enable-chunked-prefill", "--enable-cumem-allocator", "--enable-dbo", "--enable-ep-weight-filter",
    "--enable-eplb", "--enable-expert-parallel", "--enable-flash-late-interaction", "--enable-flashinfer-autotune",
    "--enable-force-include-usage", "--enable-hc-sp", "--enable-logging-iteration-details", "--enable-lora",
    "--enable-mamba-cache-stochastic-rounding", "--enable-mamba-shared-prefix-checkpoint", "--enable-mfu-metrics",
    "--enable-mixed-moe-lora-format", "--enable-moe-shared-loras", "--enable-nccl-comm-suspend",
    "--enable-per-request-metrics", "--enable-prefix-caching", "--enable-prompt-tokens-details",
    "--enable-request-id-headers", "--enable-return-routed-experts", "--enable-server-load-tracking",
    "--enable-shm-tensor-arena", "--enable-tokenizer-info-endpoint", "--enable-tower-connector-lora",
    "--enforce-eager", "--exclude-tools-when-tool-choice-none", "--fully-sharded-loras", "--interleave-mm-strings",
    "--kv-cache-metrics", "--kv-sharing-fast-prefill", "--language-model-only", "--log-error-stack",
    "--long-prefill-token-threshold-adaptive", "--mm-device-do-normalize", "--mm-encoder-only", "--numa-bind",
    "--return-sampling-mask", "--return-tokens-as-token-ids", "--scheduler-reserve-full-isl", "--skip-mm-profiling",
    "--specialize-active-lora", "--swa-bounded-replay", "--tokens-only", "--use-fp64-gumbel", "--use-replayssm",
    "--use-tqdm-on-load", "--disable-fastapi-docs", "--jit-monitor-verbose", "--fail-on-environ-validation",
)  # fmt: skip
_PLAIN_SWITCHES = ("--disable-log-stats", "--aggregate-engine-logging")
_WORDS = (
    "--all2all-backend", "--attention-backend", "--cohere-format", "--dcp-comm-backend", "--device-ids",
    "--gdn-prefill-backend", "--kda-decode-backend", "--kda-prefill-backend", "--kv-cache-dtype",
    "--kv-cache-dtype-skip-layers", "--linear-backend", "--mamba-backend", "--mamba-ssu-algorithm",
    "--mm-encoder-attn-backend", "--mm-encoder-attn-dtype", "--mm-hasher-algorithm", "--moe-backend",
    "--numa-bind-cpus", "--numa-bind-nodes", "--optimization-level", "--quantization", "--reasoning-parser",
    "--response-role", "--sparse-indexer-topk-backend", "--tool-call-parser", "--video-pruning-method",
    "--show-hidden-metrics-for-version", "--lora-target-modules", "--cpu-offload-params", "--offload-params",
)  # fmt: skip
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks of adapters that can be reserved."""

_CHOICES = {
    "--anthropic-disabled-thinking-effort": "auto|high|low|max|medium|none|xhigh",
    "--chat-template-content-format": "auto|string|openai",
    "--convert": "auto|classify|embed|none",
    "--dtype": "auto|half|float16|bfloat16|float|float32",
    "--expert-placement-strategy": "linear|round_robin",
    "--fingerprint-mode": "full|hash|none",
    "--generation-config": "vllm|auto",
    "--jit-monitor-mode": "error|warn",
    "--logprobs-mode": "processed_logits|processed_logprobs|raw_logits|raw_logprobs",
    "--lora-dtype": "auto|bfloat16|float16",
    "--mamba-cache-dtype": "auto|bfloat16|float16|float32",
    "--mamba-cache-mode": "align|none",
    "--mamba-ssm-cache-dtype": "auto|bfloat16|float16|float32",
    "--max-lora-rank": "|".join(map(str, LORA_RANKS)),
    "--mm-encoder-tp-mode": "data|weights",
    "--mm-processor-cache-type": "lru|shm",
    "--mm-processor-device": "auto|cpu",
    "--mm-tensor-ipc": "direct_rpc|torch_shm",
    "--offload-backend": "auto|prefetch|uva",
    "--per-request-spec-decode-metrics": "detailed|none|summary",
    "--performance-mode": "balanced|interactivity|throughput",
    "--prefix-caching-hash-algo": "sha256|sha256_cbor|xxhash|xxhash_cbor",
    "--runner": "auto|generate|pooling",
    "--safetensors-load-strategy": "eager|lazy|prefetch",
    "--scheduling-policy": "fcfs|priority",
    "--tokenizer-mode": "auto|hf|mistral|cohere|deepseek_v32|deepseek_v4|inkling|kimi_k3",
    "--tool-strict-level": "auto|function|parameter",
    "--uvicorn-log-level": "critical|debug|error|info|trace|warning",
}
_JSON = (
    "--default-chat-template-kwargs", "--hf-overrides", "--limit-mm-per-prompt", "--mm-processor-kwargs",
    "--override-generation-config", "--pooler-config", "--structured-outputs-config",
)  # fmt: skip
_SIZES = {
    "--tensor-parallel-size": "-tp", "--pipeline-parallel-size": "-pp", "--data-parallel-size": "-dp",
    "--decode-context-parallel-size": "-dcp", "--prefill-context-parallel-size": "-pcp",
}  # fmt: skip

DENIED = {
    "the runner sets it": (
        "--model", "--host", "--port", "--uds", "--served-model-name", "--tokenizer", "--load-format", "--root-path",
        "--headless", "--max-model-len",
    ),
    "clients would choose what the engine renders or loads": (
        "--trust-request-chat-template", "--trust-request-mm-kwargs", "--enable-prompt-embeds", "--enable-mm-embeds",
        "--media-io-kwargs", "--allowed-media-domains", "--allowed-local-media-path", "--enable-trace-replay",
    ),
    "it loads code": (
        "--tool-parser-plugin", "--reasoning-parser-plugin", "--middleware", "--logits-processors", "--worker-cls",
        "--worker-extension-cls", "--model-impl", "--io-processor-plugin", "--scheduler-cls",
        "--model-class-overrides", "--distributed-executor-backend", "--compilation-config", "--additional-config",
        "--kernel-config", "--ir-op-priority", "--custom-histogram-buckets", "--cudagraph-capture-sizes",
        "--quantization-config", "--attention-config", "--reasoning-config", "--diffusion-config",
        "--watermark-config", "--engram-config", "--aux-output-config", "--model-loader-extra-config",
    ),
    "it writes or reads other files": (
        "--config", "--config-format", "--download-dir", "--log-config-file", "--logging-config", "--log-level",
        "--profiler-config", "--hf-config-path", "--ignore-patterns", "--pt-load-map-location", "--enable-offline-docs",
        "--mm-encoder-fp8-scale-path", "--mm-encoder-fp8-scale-save-path", "--ray-workers-use-nsight",
        "--enable-layerwise-nvtx-tracing", "--collect-detailed-traces", "--skip-tokenizer-init",
    ),
    "it loads a model that is not part of the verified one": (
        "--speculative-config", "--spec-method", "--spec-model", "--spec-tokens", "--default-mm-loras",
        "--revision", "--code-revision", "--tokenizer-revision", "--hf-token",
    ),
    "it opens or changes network access": (
        "--api-key", "--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--ssl-cert-reqs", "--ssl-ciphers",
        "--enable-ssl-refresh", "--allowed-origins", "--allowed-methods", "--allowed-headers", "--allow-credentials",
        "--otlp-traces-endpoint", "--kv-transfer-config", "--kv-events-config", "--ec-transfer-config",
        "--ec-manager-config", "--weight-transfer-config", "--kv-offloading-backend", "--tool-server", "--grpc",
        "--grpc-port", "--data-parallel-address", "--data-parallel-backend", "--data-parallel-rpc-port",
        "--data-parallel-supervisor-port", "--master-addr", "--master-port",
        "--h11-max-header-count", "--h11-max-incomplete-event-size",
    ),
    "one runner serves one engine on one host": (
        "--data-parallel-external-lb", "--data-parallel-hybrid-lb", "--data-parallel-multi-port-external-lb",
        "--data-parallel-rank", "--data-parallel-size-local", "--data-parallel-start-rank", "--nnodes", "--node-rank",
        "--dp-supervisor-probe-failure-threshold", "--dp-supervisor-probe-interval-s",
        "--dp-supervisor-probe-timeout-s", "--dp-sync-interval", "--elastic-ep-max-dp-size", "--enable-elastic-ep",
        "--enable-fault-tolerance", "--fault-tolerance-config", "--enable-scale-out", "--eplb-config",
        "--enable-sleep-mode", "--sleep-mode-offload-cudagraph", "--sleep-preserve-parameter-names",
        "--fingerprint-value",
    ),
    "it writes what users ask and are answered into the log": (
        "--enable-log-requests", "--enable-log-outputs", "--enable-log-deltas", "--disable-access-log-for-endpoints",
    ),
}  # fmt: skip
"""Why a flag is denied, and the flags that are denied for it."""

ALLOWED = AllowList(
    "vllm",
    [
        *(Flag(name, "int") for name in _INTEGERS),
        *(Flag(name, "int", (short,)) for name, short in _SIZES.items()),
        *(Flag(name, "float") for name in _FLOATS),
        *(Flag(name, "switch") for name in _PLAIN_SWITCHES),
        *(Flag(name, "switch") for name in _SWITCHES),
        *(Flag(f"--no-{name.removeprefix('--')}", "switch") for name in _SWITCHES),
        *(Flag(name, "word", ("-q",) if name == "--quantization" else ()) for name in _WORDS),
        *(Flag(name, kind) for name, kind in _CHOICES.items()),
        *(Flag(name, "json") for name in _JSON),
        Flag("--gpu-memory-utilization", "float", ("--device-memory-utilization",)),
        Flag("--chat-template", "file"),
        Flag("--trust-remote-code", "switch", granted=True),
        Flag("--lora-modules", "adapter"),
    ],
    {
        **{name: reason for reason, names in DENIED.items() for name in names},
        "--max-model-len": "state it as --context-size",
    },
)
