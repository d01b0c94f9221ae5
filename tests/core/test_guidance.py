import pytest
import torch

from mmgen import guidance


def branches(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(count, 3, 8, 8, generator=generator) for _ in range(2))


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_scale_1_is_exactly_the_conditional_branch(rescale):
    cond, uncond = branches()
    assert torch.equal(guidance.make(1.0, rescale)(cond, uncond), cond)


def test_scale_0_is_exactly_the_unconditional_branch():
    cond, uncond = branches()
    assert torch.equal(guidance.make(0.0)(cond, uncond), uncond)


@pytest.mark.parametrize("scale", [0.5, 2.0, 7.5])
def test_guidance_is_the_same_on_x0_and_on_eps(scale):
    cond, uncond = branches()
    x_t, alpha, sigma = cond + uncond, 0.6, 0.4
    eps_cond, eps_uncond = (x_t - alpha * cond) / sigma, (x_t - alpha * uncond) / sigma
    eps = eps_uncond + scale * (eps_cond - eps_uncond)
    x0 = guidance.classifier_free(scale)(cond, uncond)
    torch.testing.assert_close((x_t - alpha * x0) / sigma, eps, atol=1e-4, rtol=1e-4)


def test_guidance_acts_within_its_interval_only():
    for t, inside in (
        (0.0, False),
        (0.2, False),
        (0.25, True),
        (0.5, True),
        (0.75, True),
        (0.8, False),
        (1.0, False),
    ):
        assert guidance.is_active(3.0, (0.25, 0.75), t) is inside
        assert guidance.is_active(3.0, None, t) is True
        assert guidance.is_active(0.0, None, t) is True
        assert guidance.is_active(1.0, (0.25, 0.75), t) is False


def test_rescaling_brings_the_conditional_deviation_back():
    cond, uncond = branches()
    plain = guidance.make(7.5)(cond, uncond)
    whole = guidance.make(7.5, rescale=1.0)(cond, uncond)
    half = guidance.make(7.5, rescale=0.5)(cond, uncond)
    torch.testing.assert_close(whole.flatten(1).std(1), cond.flatten(1).std(1))
    assert bool((plain.flatten(1).std(1) > 2 * cond.flatten(1).std(1)).all())
    torch.testing.assert_close(half, (plain + whole) / 2)


def test_rescaling_a_flat_picture_is_finite():
    flat = torch.zeros(1, 3, 4, 4)
    assert torch.equal(guidance.make(3.0, rescale=1.0)(flat, flat), flat)


def test_rescaling_does_not_depend_on_the_batch():
    cond, uncond = branches()
    guide = guidance.make(5.0, rescale=0.7)
    together = guide(cond, uncond)
    for i in range(3):
        assert torch.equal(together[i], guide(cond[i : i + 1], uncond[i : i + 1])[0])


@pytest.mark.parametrize(
    ("parallel", "limit"), [(0.0, None), (0.3, None), (1.0, 0.2), (0.0, 0.2), (0.5, 50.0)]
)
def test_projected_guidance_is_that_of_diffusers(parallel, limit):
    from diffusers.guiders.adaptive_projected_guidance import normalized_guidance

    cond, uncond = branches()
    norm = 0.0 if limit is None else limit * (3 * 8 * 8) ** 0.5
    theirs = normalized_guidance(  # from the conditional side, so one less than the scale
        cond, uncond, 3.0, None, eta=parallel, norm_threshold=norm, use_original_formulation=True
    )
    ours = guidance.make(4.0, parallel=parallel, limit=limit)(cond, uncond)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_projection_takes_away_what_only_brightens():
    cond, uncond = branches()
    plain, projected = guidance.make(4.0)(cond, uncond), guidance.make(4.0, parallel=0.0)(cond, uncond)
    across = (projected - cond).flatten(1)
    assert (across * cond.flatten(1)).sum(1).abs().max() < 1e-3
    assert not torch.allclose(plain, projected, atol=0.1)
    assert torch.equal(guidance.make(1.0, parallel=0.0, limit=0.1)(cond, uncond), cond)


def test_a_limit_holds_back_only_what_is_larger():
    cond, uncond = branches()
    near = cond + 0.01 * (uncond - cond)
    limited = guidance.make(3.0, limit=0.5)
    torch.testing.assert_close(limited(cond, near), guidance.make(3.0)(cond, near))
    moved = (limited(cond, uncond) - cond) / 2
    torch.testing.assert_close(moved.square().flatten(1).mean(1).sqrt(), torch.full((3,), 0.5))
