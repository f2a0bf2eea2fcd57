"""Every reason for which an uploaded file is refused: one class and one stable code per rule.

Archives and safetensors files can hold a checkpoint or a dataset, so their refusals belong to both trees.
"""

from __future__ import annotations

from worker.sanitizer.errors import SanitizerError


class CheckpointRefusedError(SanitizerError):
    """The checkpoint is not accepted."""

    code = "checkpoint_refused"


class DatasetRefusedError(SanitizerError):
    """The dataset is not accepted."""

    code = "dataset_refused"


class UploadRefusedError(CheckpointRefusedError, DatasetRefusedError):
    """A container that both kinds of upload may come in is not accepted."""

    code = "upload_refused"


class EmptyUploadError(UploadRefusedError):
    """The file has no bytes."""

    code = "empty_upload"


class UnreadableUploadError(UploadRefusedError):
    """The operating system does not give us the file."""

    code = "unreadable_upload"


# Zip archives ---------------------------------------------------------------------------------------------------------


class CorruptArchiveError(UploadRefusedError):
    """The zip directory and the bytes do not agree, or the file is cut off."""

    code = "corrupt_archive"


class ArchiveTooLargeError(UploadRefusedError):
    """More members, or more bytes once unpacked, than a limit allows."""

    code = "archive_too_large"


class EncryptedArchiveError(UploadRefusedError):
    """A member is encrypted."""

    code = "encrypted_archive"


class ArchivePathRefusedError(UploadRefusedError):
    """A member has an absolute name, a `..`, a backslash, or is a link."""

    code = "archive_path_refused"


class DuplicateMemberError(UploadRefusedError):
    """Two members have one name (or names that differ in case only)."""

    code = "duplicate_archive_member"


class UnsupportedCompressionError(UploadRefusedError):
    """A member is neither stored nor deflated."""

    code = "unsupported_compression"


# safetensors ----------------------------------------------------------------------------------------------------------


class CorruptSafetensorsError(UploadRefusedError):
    """The header is not the JSON that the format prescribes, or it does not fit the bytes."""

    code = "corrupt_safetensors"


class HeaderTooLargeError(UploadRefusedError):
    """The JSON header is above the limit."""

    code = "header_too_large"


class TooManyTensorsError(UploadRefusedError):
    """More tensors than the limit."""

    code = "too_many_tensors"


class UnsupportedDtypeError(UploadRefusedError):
    """A number format that we do not read."""

    code = "unsupported_dtype"


class AbsurdShapeError(UploadRefusedError):
    """Too many or too large dimensions, as in an empty tensor of 2^60 columns."""

    code = "absurd_tensor_shape"


# Checkpoints ----------------------------------------------------------------------------------------------------------


class UnknownCheckpointFormatError(CheckpointRefusedError):
    """Neither safetensors nor a torch zip."""

    code = "unknown_checkpoint_format"


class CorruptCheckpointError(CheckpointRefusedError):
    """A torch zip whose pickle or storages are damaged."""

    code = "corrupt_checkpoint"


class LegacyCheckpointError(CheckpointRefusedError):
    """The tar or stacked-pickle format from before torch 1.6."""

    code = "legacy_checkpoint"


class BarePickleError(CheckpointRefusedError):
    """A pickle outside a torch zip (pickle.dump, joblib, dill)."""

    code = "bare_pickle"


class TorchScriptError(CheckpointRefusedError):
    """A TorchScript program."""

    code = "torchscript"


class PickledModuleError(CheckpointRefusedError):
    """The pickle names Python objects other than tensors and plain containers."""

    code = "pickled_module"


class DeflatedMemberError(CheckpointRefusedError):
    """A member of a torch zip is compressed; torch.save never does that."""

    code = "deflated_member"


class UnknownMemberError(CheckpointRefusedError):
    """A member that torch.save does not write."""

    code = "unknown_archive_member"


class UnsupportedPickleError(CheckpointRefusedError):
    """Another pickle protocol, or instructions that torch's restricted loader lacks."""

    code = "unsupported_pickle"


class CheckpointTooComplexError(CheckpointRefusedError):
    """The pickle is too long, nests too deeply, refers to itself or has too many entries."""

    code = "checkpoint_too_complex"


class UnsupportedTensorError(CheckpointRefusedError):
    """A sparse, quantized, nested, meta or otherwise not dense strided tensor."""

    code = "unsupported_tensor"


class TensorExceedsStorageError(CheckpointRefusedError):
    """A tensor declares more elements than its storage holds, as a stride of 0 does."""

    code = "tensor_exceeds_storage"


class UnsupportedByteOrderError(CheckpointRefusedError):
    """Saved on a big-endian machine."""

    code = "unsupported_byte_order"


class NoStateDictError(CheckpointRefusedError):
    """No state dict was found where one is looked for."""

    code = "no_state_dict"


class SeveralStateDictsError(CheckpointRefusedError):
    """More than one entry could be the model; we do not guess."""

    code = "several_state_dicts"


class NonFiniteWeightsError(CheckpointRefusedError):
    """NaN or infinity in a weight. `tensor` is its name."""

    code = "non_finite_weights"

    def __init__(self, message: str, *, tensor: str) -> None:
        super().__init__(message)
        self.tensor = tensor


class ArchitectureMismatchError(CheckpointRefusedError):
    """Keys, shapes or kinds of numbers are not those of the named architecture."""

    code = "architecture_mismatch"

    def __init__(self, message: str, *, num_missing: int, num_unexpected: int, num_different: int) -> None:
        super().__init__(message)
        self.num_missing = num_missing
        self.num_unexpected = num_unexpected
        self.num_different = num_different


class TiedTensorsDisagreeError(CheckpointRefusedError):
    """Two names share one memory in the checkpoint, and were given different new values."""

    code = "tied_tensors_disagree"


# Hugging Face repositories --------------------------------------------------------------------------------------------


class IncompleteRepositoryError(CheckpointRefusedError):
    """A zip of a Hugging Face repository without its config.json or its model.safetensors."""

    code = "incomplete_repository"


class NotFromTransformersError(CheckpointRefusedError):
    """The file carries a config.json, but the declared architecture is not of the source `transformers`."""

    code = "architecture_not_transformers"


class NoConfigInFileError(CheckpointRefusedError):
    """The declared architecture is of the source `transformers`, but the file carries no config.json."""

    code = "no_config_in_file"


class CorruptConfigError(CheckpointRefusedError):
    """A config.json or preprocessor_config.json that is no JSON object, names a key twice, or is too large."""

    code = "corrupt_config"


class ConfigCarriesCodeError(CheckpointRefusedError):
    """The configuration names Python code of its own (auto_map, trust_remote_code, custom pipelines)."""

    code = "config_carries_code"


class UnknownModelTypeError(CheckpointRefusedError):
    """The configuration's model_type or class is none of the allow-listed image classifiers."""

    code = "unknown_model_type"


class UnknownConfigFieldError(CheckpointRefusedError):
    """A field that the model family is not known to have; it could change the network, so it is not ignored."""

    code = "unknown_config_field"


class InvalidConfigFieldError(CheckpointRefusedError):
    """A field of the configuration has a wrong type, is out of its bounds, or does not fit the other fields."""

    code = "invalid_config_field"


class ConfigMismatchError(CheckpointRefusedError):
    """The declared architecture and the configuration differ in name, number of classes or channels."""

    code = "config_mismatch"


# Exported programs ----------------------------------------------------------------------------------------------------


class CorruptProgramError(CheckpointRefusedError):
    """A `.pt2` archive whose parts are missing, malformed or do not agree."""

    code = "corrupt_program"


class OldExportLayoutError(CheckpointRefusedError):
    """The layout of `.pt2` in which torch before 2.10 kept the weights as pickles."""

    code = "old_export_layout"


class SeveralProgramsError(CheckpointRefusedError):
    """More than one program in the archive; we do not guess."""

    code = "several_programs"


class CompiledPackageError(CheckpointRefusedError):
    """The archive holds compiled libraries (AOTInductor, ExecuTorch)."""

    code = "compiled_package"


class ProgramTooLargeError(CheckpointRefusedError):
    """More JSON, nodes or tensors than a limit allows."""

    code = "program_too_large"


class NewerExportError(CheckpointRefusedError):
    """Another version of the schema, or fields that we do not know."""

    code = "unknown_program_schema"


class GuardCodeError(CheckpointRefusedError):
    """Python code that torch's loader would run."""

    code = "program_guard_code"


class CustomObjectError(CheckpointRefusedError):
    """Custom or opaque objects, which are pickles."""

    code = "program_custom_object"


class PickledWeightsError(CheckpointRefusedError):
    """A weight or constant that is kept as a pickle."""

    code = "program_pickled_tensor"


class SymbolicExpressionError(CheckpointRefusedError):
    """A symbolic size beyond a narrow grammar; torch's loader would evaluate it as Python."""

    code = "program_symbolic_expression"


class TreeSpecError(CheckpointRefusedError):
    """Inputs or outputs in containers of other types than tuples, lists and dictionaries."""

    code = "program_tree_specification"


class ProgramOperatorError(CheckpointRefusedError):
    """An operator that is not on the allow-list. `operator` is its name."""

    code = "program_operator"

    def __init__(self, message: str, *, operator: str) -> None:
        super().__init__(message)
        self.operator = operator


class SubgraphError(CheckpointRefusedError):
    """Control flow, or another operator that holds a graph."""

    code = "program_subgraph"


class ProgramArgumentError(CheckpointRefusedError):
    """An argument that does not fit its operator."""

    code = "program_argument"


class InPlaceOnWeightError(CheckpointRefusedError):
    """An operator writes into a weight or into the input."""

    code = "program_writes_weight"


class TrainingModeError(CheckpointRefusedError):
    """The program was exported in training mode."""

    code = "program_training_mode"


class ProgramSignatureError(CheckpointRefusedError):
    """Not one batch of images in and one batch of logits out."""

    code = "program_inputs_outputs"


class ProgramTensorNameError(CheckpointRefusedError):
    """A tensor of a program has a name that no module's tensor can have."""

    code = "program_tensor_name"


class ArchitectureNotFromFileError(CheckpointRefusedError):
    """The file carries its own graph, and an architecture was named beside it."""

    code = "architecture_not_from_file"


class NoProgramInFileError(CheckpointRefusedError):
    """The architecture is said to be in the file, and the file holds tensors alone."""

    code = "no_program_in_file"


# ONNX -----------------------------------------------------------------------------------------------------------------


class CorruptOnnxError(CheckpointRefusedError):
    """The bytes are no whole ONNX model, or its parts do not agree."""

    code = "corrupt_onnx"


class OnnxTooComplexError(CheckpointRefusedError):
    """More fields, nodes, tensors or values than a limit allows."""

    code = "onnx_too_complex"


class OnnxExternalDataError(CheckpointRefusedError):
    """Weights are kept in other files."""

    code = "onnx_external_data"


class OnnxFunctionError(CheckpointRefusedError):
    """The model defines functions of its own."""

    code = "onnx_function"


class OnnxSubgraphError(CheckpointRefusedError):
    """If, Loop, Scan or another operator that holds a graph."""

    code = "onnx_subgraph"


class OnnxSparseTensorError(CheckpointRefusedError):
    """A sparse initialiser or constant."""

    code = "onnx_sparse_tensor"


class OnnxTrainingError(CheckpointRefusedError):
    """Training information, or an operator in training mode."""

    code = "onnx_training_graph"


class OnnxDomainError(CheckpointRefusedError):
    """An operator of another domain than ONNX's own."""

    code = "onnx_custom_domain"


class OnnxOpsetError(CheckpointRefusedError):
    """No opset, several, or one that is not supported."""

    code = "onnx_opset"


class OnnxInterfaceError(CheckpointRefusedError):
    """Not one batch of images in and one batch of logits out."""

    code = "onnx_inputs_outputs"


class OnnxDuplicateNameError(CheckpointRefusedError):
    """One name for two values."""

    code = "onnx_duplicate_name"


class OnnxOperatorError(CheckpointRefusedError):
    """An operator, or a use of it, that is not supported."""

    code = "onnx_operator"


# Datasets -------------------------------------------------------------------------------------------------------------


class UnknownDatasetFormatError(DatasetRefusedError):
    """Neither npz, safetensors, parquet nor a zip of class folders."""

    code = "unknown_dataset_format"


class CorruptDatasetError(DatasetRefusedError):
    """An array or image cannot be read."""

    code = "corrupt_dataset"


class DatasetTooLargeError(DatasetRefusedError):
    """Too many images or bytes once unpacked."""

    code = "dataset_too_large"


class MissingArrayError(DatasetRefusedError):
    """No array named `images`."""

    code = "missing_images"


class ObjectArrayError(DatasetRefusedError):
    """An array of Python objects, which only a pickle can hold."""

    code = "object_array"


class ImageDtypeError(DatasetRefusedError):
    """Pixels are neither uint8 nor floating point."""

    code = "wrong_image_dtype"


class ImageShapeError(DatasetRefusedError):
    """Not three or four dimensions."""

    code = "wrong_image_shape"


class AmbiguousLayoutError(DatasetRefusedError):
    """The shape can be read as NCHW and as NHWC."""

    code = "ambiguous_image_layout"


class LabelArrayError(DatasetRefusedError):
    """Labels are not one integer per image."""

    code = "wrong_label_array"


class FolderLayoutError(DatasetRefusedError):
    """The zip is not a folder of images per class."""

    code = "wrong_folder_layout"


class SeveralSplitsError(DatasetRefusedError):
    """More than one split (train, test ...) in one upload; which of them is clean and unseen is not ours to guess."""

    code = "several_splits"


class UnknownClassNamesError(DatasetRefusedError):
    """Class names that the model was not declared with."""

    code = "unknown_class_names"


class ColourImagesError(DatasetRefusedError):
    """Colour images for a model of one channel, and no word on how they become gray."""

    code = "colour_images"


class ParquetLayoutError(DatasetRefusedError):
    """Columns that are not those of a Hugging Face image set."""

    code = "wrong_parquet_layout"


class ParquetNotInstalledError(DatasetRefusedError):
    """This worker has no pyarrow."""

    code = "parquet_not_installed"


class NestedArchiveError(DatasetRefusedError):
    """An archive inside the archive."""

    code = "nested_archive"


class ImageTooLargeError(DatasetRefusedError):
    """An image has more pixels than the limit."""

    code = "image_too_large"


class ImageSizesDifferError(DatasetRefusedError):
    """The images are not all of one size."""

    code = "image_sizes_differ"


class NoImagesError(DatasetRefusedError):
    """There is no image at all."""

    code = "empty_dataset"


class NonFinitePixelsError(DatasetRefusedError):
    """NaN or infinity among the pixels."""

    code = "non_finite_pixels"


class PixelRangeError(DatasetRefusedError):
    """Floating-point pixels outside [0, 1]."""

    code = "pixels_out_of_range"


class WrongChannelsError(DatasetRefusedError):
    """Another number of channels than the model's input."""

    code = "wrong_channels"


class WrongSizeError(DatasetRefusedError):
    """Another height or width than the model's input."""

    code = "wrong_image_size"


class LabelsMissingError(DatasetRefusedError):
    """A clean set without labels."""

    code = "labels_missing"


class LabelsOutOfRangeError(DatasetRefusedError):
    """A label below 0 or not below the number of classes."""

    code = "labels_out_of_range"


class WrongClassCountError(DatasetRefusedError):
    """The number of named class folders is not the model's number of classes."""

    code = "wrong_class_count"


class SingleClassError(DatasetRefusedError):
    """All images have one label."""

    code = "single_class"


class TooFewPerClassError(DatasetRefusedError):
    """Classes with fewer images than are needed. `classes` are their labels."""

    code = "too_few_per_class"

    def __init__(self, message: str, *, classes: tuple[int, ...]) -> None:
        super().__init__(message)
        self.classes = classes
