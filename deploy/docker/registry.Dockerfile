# The registry as a container: docker build -f deploy/docker/registry.Dockerfile -t stowage-registry .
# It runs as a user without a name or a shell, and writes nowhere but to /var/lib/registry and /tmp: run it with
# --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges.
#
# A tag of the base image can be moved. For a build that can be repeated, name it by what `skopeo inspect` says it is:
# --build-arg BASE=python@sha256:…

ARG BASE=python:3.13-slim
FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY artifact artifact
COPY supplychain supplychain
COPY packager packager
COPY registry registry
COPY runner runner
RUN python3 -m venv /opt/stowage && /opt/stowage/bin/pip install --no-cache-dir --no-compile .

FROM ${BASE}
COPY --from=build /opt/stowage /opt/stowage
RUN install -d -o 65532 -g 65532 -m 0750 /var/lib/registry
ENV PATH=/opt/stowage/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /var/lib/registry
VOLUME /var/lib/registry
EXPOSE 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/readyz', timeout=4)"]
ENTRYPOINT ["registry"]
CMD ["serve", "--config", "/etc/stowage/registry.toml"]
