"""Tests of mounts without a kernel, and what those with one share with them."""

import pytest

pytest.register_assert_rewrite("mount.model", "mount.places", "mount.base")
