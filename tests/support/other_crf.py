"""The dense CRF of pydensecrf2, an independent implementation that is compiled from C++."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from wsss_afa.ops.dense_crf import DenseCRF


def pydensecrf(crf: DenseCRF, rgb: Tensor, prob: Tensor) -> np.ndarray:
    """What it makes, (K, H, W), of one image (1, 3, H, W) and its probabilities, with the settings of ours.

    An ImportError says that it is not installed.
    """
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    num_classes, height, width = prob.shape[1:]
    other = DenseCRF2D(width, height, num_classes)
    other.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(prob[0].numpy())))
    other.addPairwiseGaussian(sxy=crf.gaussian_sxy, compat=crf.gaussian_compat)
    other.addPairwiseBilateral(
        sxy=crf.bilateral_sxy,
        srgb=crf.bilateral_srgb,
        compat=crf.bilateral_compat,
        rgbim=np.ascontiguousarray(rgb[0].permute(1, 2, 0).numpy()),
    )
    return np.array(other.inference(crf.num_iter)).reshape(num_classes, height, width)
