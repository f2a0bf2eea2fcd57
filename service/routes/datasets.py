"""Clean images and trigger samples: declare, upload, read, delete."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service import formats, ids, resources, uploads
from service.deps import Held, Paging, Tenant
from service.schemas import PROBLEMS, DatasetCreate, DatasetView, Page
from service.tables import DatasetRow

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], responses=PROBLEMS)

_RAW_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {}}}}


@router.post("", status_code=201, summary="Declare a data set")
def create(body: DatasetCreate, held: Held, tenant: Tenant, response: Response) -> DatasetView:
    """Say what the images are; then PUT their bytes to `links.content`."""
    dataset = resources.create_dataset(
        held.sessions, tenant, name=body.name, kind=body.kind, target_class=body.target_class
    )
    response.headers["Location"] = f"/v1/datasets/{dataset.id}"
    return DatasetView.of(dataset)


@router.get("", summary="List data sets, newest first")
def list_datasets(held: Held, tenant: Tenant, paging: Paging) -> Page[DatasetView]:
    """Follow `next_cursor` until it is null."""
    rows = resources.list_resources(
        held.sessions, DatasetRow, tenant, limit=paging.limit + 1, before=paging.before(ids.DATASET)
    )
    return paging.page(rows, DatasetView.of)


@router.get("/{dataset_id}", summary="Read a data set")
def read(dataset_id: str, held: Held, tenant: Tenant) -> DatasetView:
    """Its state is `awaiting_content` or `ready`."""
    return DatasetView.of(resources.get(held.sessions, DatasetRow, tenant, dataset_id))


@router.put("/{dataset_id}/content", summary="Upload a data set", openapi_extra=_RAW_BODY)
async def upload(dataset_id: str, request: Request, held: Held, tenant: Tenant) -> DatasetView:
    """The raw file as the body (`curl -T FILE`).

    npz or safetensors with `images` (N, C, H, W) and `labels` (N); a zip of class folders of PNG or JPEG files, with or
    without the outer folder of one split; or Parquet (one file, or a zip of the shards of one split) with an image and
    an integer label a row, as Hugging Face's `datasets` writes it.
    """
    dataset = await uploads.receive(
        held.sessions,
        DatasetRow,
        tenant,
        dataset_id,
        headers=request.headers,
        stream=request.stream(),
        look=formats.of_dataset,
        staging_dir=held.settings.staging_dir,
        max_bytes=held.settings.max_dataset_bytes,
    )
    return DatasetView.of(dataset)


@router.delete("/{dataset_id}", status_code=204, summary="Delete a data set")
def delete(dataset_id: str, held: Held, tenant: Tenant) -> None:
    """Refused while a job uses it; the history and results of ended jobs stay readable."""
    resources.delete(held.sessions, DatasetRow, tenant, dataset_id)
