FROM python:3.13-slim-bookworm AS build
ENV PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# the base's own pip fills the environment, so that none is left in it
RUN python -m venv --without-pip /app
# the locked dependencies are a layer of their own: a change of the source keeps it
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /app/bin/python install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY warmproxy ./warmproxy
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /app/bin/python install --no-deps .

FROM python:3.13-slim-bookworm
ARG VERSION=dev
ARG SOURCE=https://example.org/warmproxy
LABEL org.opencontainers.image.title="warmproxy" \
      org.opencontainers.image.description="A local forward proxy that hands out upstream connections which are already open" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /app /app
# The root file system may be read-only: nothing is ever written to it. Who mounts a volume can name
# a file on it in WARMPROXY_STATE_FILE.
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 WARMPROXY_STATE_FILE=""
# A published port arrives from outside the container's loopback, so both listeners take every
# address; who may use the proxy stays limited to loopback and the private networks.
ENV WARMPROXY_LISTEN="0.0.0.0:3128" \
    WARMPROXY_ADMIN="0.0.0.0:3180" \
    WARMPROXY_ALLOW_CLIENTS="127.0.0.0/8 ::1/128 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7"
# a number, because Kubernetes' runAsNonRoot cannot tell whether a name is root
USER 65532:65532
EXPOSE 3128 3180
# slim images have no curl: the daemon asks itself
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["warmproxy", "healthcheck"]
ENTRYPOINT ["warmproxy"]
CMD ["run"]
