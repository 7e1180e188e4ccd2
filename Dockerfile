# The manager and the agent, in one image. `docker build -t moorage/server .`
# Without a registry or an index (see scripts/server-image): another BASE, and wheels laid into build/wheels before.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG PIP_OPTIONS=""
USER 0:0
WORKDIR /opt/moorage
COPY requirements/server.txt build/wheels* wheels/
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore --require-hashes ${PIP_OPTIONS} \
    -r wheels/server.txt
COPY . source/
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore --no-deps --no-build-isolation --no-index \
    ./source/sdk ./source \
 && rm -rf source wheels \
 && mkdir -p /var/lib/moorage && chown 10001:10001 /var/lib/moorage
ENV MOORAGE_DATA_DIR=/var/lib/moorage HOME=/var/lib/moorage PYTHONUNBUFFERED=1
WORKDIR /var/lib/moorage
# The manager's user; the agent, which speaks with the engine, is started as root (compose.yaml).
USER 10001:10001
ENTRYPOINT ["moorage"]
CMD ["manager"]
EXPOSE 8422 8470 8471 8472 8473 8474 8475 8480
LABEL org.opencontainers.image.title=moorage org.opencontainers.image.licenses=Apache-2.0
