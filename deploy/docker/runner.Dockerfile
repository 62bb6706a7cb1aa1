# The runner as a container, with llama.cpp: docker build -f deploy/docker/runner.Dockerfile -t stowage-runner .
# With vLLM, over vLLM's own image, whose environment the runner does not share:
#
#   docker build -f deploy/docker/runner.Dockerfile --build-arg BASE=vllm/vllm-openai:v0.32.0 --build-arg EXTRA= \
#       -t stowage-runner-vllm .                  and then: --engine-path vllm=/usr/bin/python3
#
# A tag of the base image can be moved. For a build that can be repeated, name it by what `skopeo inspect` says it is:
# --build-arg BASE=python@sha256:…
#
# It runs as a user without a name or a shell, and writes nowhere but to /var/lib/stowage and /tmp: run it with
# --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges. Engines are confined by the kernel where the
# container may make user namespaces; `runner ps --json` says what is in force.

ARG BASE=python:3.13-slim
FROM ${BASE} AS build
ARG EXTRA=[llama-cpp]
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY artifact artifact
COPY supplychain supplychain
COPY packager packager
COPY registry registry
COPY runner runner
RUN python3 -m venv /opt/stowage && /opt/stowage/bin/pip install --no-cache-dir --no-compile ".${EXTRA}"

FROM ${BASE}
COPY --from=build /opt/stowage /opt/stowage
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/stowage
ENV PATH=/opt/stowage/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    STOWAGE_STORE=/var/lib/stowage HOME=/tmp
USER 65532:65532
WORKDIR /var/lib/stowage
VOLUME /var/lib/stowage
EXPOSE 12434
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m CMD ["/opt/stowage/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:12434/healthz', timeout=4)"]
ENTRYPOINT ["runner"]
CMD ["--help"]
