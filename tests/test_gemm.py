import pytest
import torch
import torch.nn.functional as F

from plumbing.compute.products import FEW, linear


@pytest.mark.parametrize("rows", [1, 2, 8, 9, 15, 16, FEW, FEW + 1])
@pytest.mark.parametrize("shape", [(7, 5), (512, 300)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_form_is_the_same_product(rows, shape, with_bias, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, shape[1], dtype=dtype), torch.randn(shape, dtype=dtype)
    bias = torch.randn(shape[0], dtype=dtype) if with_bias else None
    with torch.no_grad():
        product = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        torch.testing.assert_close(linear(x, weight, bias), product.to(dtype), rtol=0.02, atol=1e-4)


def test_gradients_go_through():
    x = torch.randn(1, 400, requires_grad=True)
    weight = torch.randn(400, 400)
    linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad[0], weight.sum(0), rtol=1e-4, atol=1e-4)
