# One image for migrate, API, beat and worker: they are one release. PyPI's torch brings its CUDA libraries along.
FROM python:3.12-slim AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY migrations migrations
COPY service service
COPY worker worker
RUN python -m venv /opt/lustrate \
 && /opt/lustrate/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin lustrate \
 && install -d -o lustrate -g lustrate -m 0700 /data
COPY --from=build /opt/lustrate /opt/lustrate
ENV PATH=/opt/lustrate/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LUSTRATE_DATA_DIR=/data
USER lustrate
WORKDIR /data
CMD ["uvicorn", "--factory", "service.app:create_from_env", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "10"]
