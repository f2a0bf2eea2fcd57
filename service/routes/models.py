"""Suspect networks: declare, upload, read, delete."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service import formats, ids, resources, uploads
from service.deps import Held, Paging, Tenant
from service.schemas import PROBLEMS, ModelCreate, ModelView, Page, plain
from service.tables import ModelRow

router = APIRouter(prefix="/v1/models", tags=["models"], responses=PROBLEMS)

_RAW_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {}}}}


@router.post("", status_code=201, summary="Declare a model")
def create(body: ModelCreate, held: Held, tenant: Tenant, response: Response) -> ModelView:
    """Say what the checkpoint is; then PUT its bytes to `links.content`."""
    model = resources.create_model(
        held.sessions,
        tenant,
        name=body.name,
        architecture=plain(body.architecture),
        input_spec=plain(body.input),
    )
    response.headers["Location"] = f"/v1/models/{model.id}"
    return ModelView.of(model)


@router.get("", summary="List models, newest first")
def list_models(held: Held, tenant: Tenant, paging: Paging) -> Page[ModelView]:
    """Follow `next_cursor` until it is null."""
    rows = resources.list_resources(
        held.sessions, ModelRow, tenant, limit=paging.limit + 1, before=paging.before(ids.MODEL)
    )
    return paging.page(rows, ModelView.of)


@router.get("/{model_id}", summary="Read a model")
def read(model_id: str, held: Held, tenant: Tenant) -> ModelView:
    """Its state is `awaiting_content` or `ready`."""
    return ModelView.of(resources.get(held.sessions, ModelRow, tenant, model_id))


@router.put("/{model_id}/content", summary="Upload a checkpoint", openapi_extra=_RAW_BODY)
async def upload(model_id: str, request: Request, held: Held, tenant: Tenant) -> ModelView:
    """The raw file as the body (`curl -T FILE`): safetensors, or a state dict written by torch.save."""
    model = await uploads.receive(
        held.sessions,
        ModelRow,
        tenant,
        model_id,
        headers=request.headers,
        stream=request.stream(),
        look=formats.of_model,
        staging_dir=held.settings.staging_dir,
        max_bytes=held.settings.max_model_bytes,
    )
    return ModelView.of(model)


@router.delete("/{model_id}", status_code=204, summary="Delete a model")
def delete(model_id: str, held: Held, tenant: Tenant) -> None:
    """Refused while a job uses it; the history and results of ended jobs stay readable."""
    resources.delete(held.sessions, ModelRow, tenant, model_id)
