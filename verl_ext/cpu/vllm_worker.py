"""vLLM's worker extension on CPU."""

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from verl_ext.cpu.processors import allow_images_without_torchvision, register_vllm_models

allow_images_without_torchvision()


class CPUWorkerExtension(vLLMColocateWorkerExtension):
    """verl's extension, with weights that stay loadable.

    vLLM's CPU linear layers pack their weight for oneDNN (or the AMX kernels) and drop the original, so that the
    second weight sync finds no tensor to write to. Plain torch linear layers keep it.
    """

    def __new__(cls, **kwargs):
        import vllm._custom_ops as custom_ops
        import vllm.model_executor.layers.utils as layer_utils

        custom_ops._supports_onednn = False
        layer_utils.check_cpu_sgl_kernel = lambda n, k, dtype: False
        if kwargs["vllm_config"].model_config.is_multimodal_model:
            register_vllm_models()
        return super().__new__(cls, **kwargs)
