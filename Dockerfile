# docker build -t trimtab --build-arg TORCH_INDEX=URL .   CPU (URL: PyTorch's index of CPU wheels; without it torch
#                                                         comes with CUDA libraries that this variant never uses)
# docker build -t trimtab:cuda --build-arg VARIANT=cuda . CUDA (run it with --gpus all)
# docker run -p 8000:8000 -v trimtab-cache:/cache trimtab [options of `trimtab serve`]
FROM node:22-bookworm-slim AS page
WORKDIR /page
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev --no-audit --no-fund
COPY server/libraries.js server/
RUN npm run --silent page

FROM python:3.12-slim-bookworm

ARG VARIANT=cpu
ARG TORCH_INDEX=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

# Triton builds its launchers when a kernel first runs, which takes a C compiler.
RUN case "$VARIANT" in \
      cpu) ;; \
      cuda) apt-get update \
            && apt-get install -y --no-install-recommends gcc libc6-dev \
            && rm -rf /var/lib/apt/lists/* ;; \
      *) echo "VARIANT is '$VARIANT': use cpu or cuda" >&2; exit 1 ;; \
    esac

WORKDIR /opt/trimtab
COPY constraints.txt ./
# torch goes first and alone, so that no other package's range can choose the build.
RUN pip install -c constraints.txt ${TORCH_INDEX:+--no-deps --index-url "$TORCH_INDEX"} torch

COPY . .
COPY --from=page /page/server/static/lib server/static/lib
RUN pip install -c constraints.txt .

# Downloaded models and compiled kernels live in the volume and outlast the container, whose own files nobody writes.
ENV HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    XDG_CACHE_HOME=/cache
RUN useradd --uid 10001 --create-home trimtab \
    && install -d -o trimtab -g trimtab /cache
VOLUME /cache
USER trimtab
WORKDIR /home/trimtab

EXPOSE 8000
# The first start fetches the demo model, so the start period is long.
HEALTHCHECK --interval=15s --timeout=3s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["trimtab", "serve", "--host", "0.0.0.0"]
