# The backend as a container for a machine with an NVIDIA GPU (it runs on CPU too, slowly).
#   docker build -t cavsam-backend .
#   docker run --gpus all -p 9090:9090 -v cavsam-weights:/weights -v cavsam-data:/data \
#       -e LABEL_STUDIO_URL=http://label-studio.example:8080 -e LABEL_STUDIO_API_KEY \
#       -e CAVSAM_BASIC_AUTH_USER -e CAVSAM_BASIC_AUTH_PASSWORD cavsam-backend
# It refuses to start without a password; see CAVSAM_OPEN_TO_NETWORK in docs/settings.md. The key comes from the environment at run time; nothing secret is in the image.

# `base`, not `runtime`: torch's own packages bring the CUDA libraries, so an image with them would hold them twice.
FROM nvidia/cuda:12.8.1-base-ubuntu22.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Ubuntu 22.04 carries Python 3.11 in universe. gcc is for packages without a wheel, curl for the health check.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates curl gcc libc6-dev python3.11 python3.11-dev python3.11-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 cavsam \
    && mkdir /app /data /weights \
    && chown cavsam:cavsam /app /data /weights

USER cavsam
WORKDIR /app

# The packages first: they change less often than the code, and are the large part.
COPY --chown=cavsam:cavsam requirements ./requirements
COPY --chown=cavsam:cavsam tools/setup.sh ./tools/setup.sh
ENV WITH_CUDA=1 PIP_NO_CACHE_DIR=1
RUN tools/setup.sh packages

COPY --chown=cavsam:cavsam pyproject.toml README.md LICENSE ./
COPY --chown=cavsam:cavsam cavsam ./cavsam
COPY --chown=cavsam:cavsam backend ./backend
RUN tools/setup.sh runtime

ENV PATH=/app/.venv/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    OMP_WAIT_POLICY=PASSIVE \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/weights \
    CAVSAM_DATA_DIR=/data \
    CAVSAM_HOST=0.0.0.0 \
    CAVSAM_PORT=9090

VOLUME ["/data", "/weights"]
EXPOSE 9090
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD curl --fail --silent --show-error "http://127.0.0.1:${CAVSAM_PORT}/health" || exit 1
# The exec form: signals reach the server, which finishes what it is doing and keeps its ledger whole.
CMD ["cavsam-backend", "serve"]
