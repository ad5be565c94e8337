# The server, on a CPU. The bundle is mounted, not built in: see compose.yaml.
FROM python:3.11-slim-bookworm AS build

WORKDIR /src
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY recbole_dppmg recbole_dppmg
COPY properties properties
# CPU wheels of torch are a tenth of the size; constraints pin everything else
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        -c constraints.txt ".[serve]"

FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 10001 server \
    && install -d -o server /cache
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    RECBOLE_DPPMG_CACHE=/cache
USER 10001
WORKDIR /home/server
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# listens to the container's network, so RECBOLE_DPPMG_API_KEY must be set
CMD ["recbole-dppmg", "serve", "--bundle=/bundle", "--host=0.0.0.0", "--port=8000", "--store=/cache/cards.sqlite3"]
