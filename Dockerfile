# The Label Studio ML backend.
#   CPU:   docker build -t groundingml .
#   CUDA:  docker build -t groundingml:cuda --build-arg VARIANT=cuda .      (run with --gpus all)
# See docs/deployment.md; compose.yaml starts it together with Label Studio.
ARG VARIANT=cpu

FROM python:3.12-slim-bookworm AS tools-cpu
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
# The CPU build is a tenth of the size of the default one.
ENV TORCH_INDEX=https://download.pytorch.org/whl/cpu

FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS tools-cuda
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
ENV CUDA_HOME=/usr/local/cuda
# The package index's own build, which holds CUDA's libraries.
ENV TORCH_INDEX=

# The ops are compiled here; only the wheel goes on.
FROM tools-${VARIANT} AS build
ARG TORCH=torch==2.13.0
RUN python3 -m venv /build \
 && /build/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH" \
 && /build/bin/pip install --no-cache-dir "setuptools>=77" wheel ninja "pybind11>=2.12"
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY csrc csrc
COPY groundingml groundingml
RUN /build/bin/pip wheel --no-build-isolation --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm AS run-cpu
ENV TORCH_INDEX=https://download.pytorch.org/whl/cpu

FROM python:3.12-slim-bookworm AS run-cuda
ENV TORCH_INDEX= \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM run-${VARIANT}
ARG TORCH=torch==2.13.0
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH" \
 && pip install --no-cache-dir "$(ls /wheels/groundingml-*.whl)[serve,train,postgres]" \
 && rm -r /wheels \
 && useradd --create-home --uid 10001 groundingml \
 && install --directory --owner=10001 --group=10001 /data
USER 10001
# Corrections, versions and downloaded models outlive the container on this volume.
VOLUME /data
ENV GROUNDINGML_DATA_DIR=/data \
    GROUNDINGML_HOST=0.0.0.0 \
    GROUNDINGML_PORT=9090 \
    HF_HOME=/data/huggingface
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['GROUNDINGML_PORT'] + '/health', timeout=4)"]
ENTRYPOINT ["groundingml"]
CMD ["serve"]
