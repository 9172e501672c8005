"""TRL's own tests of its DPO trainer, run with another trainer in its place.

    python -m benchmarks.trl_suite                                   TRL's trainer, then prefkit's
    python -m benchmarks.trl_suite --trainer package.module:Class    another one
    python -m benchmarks.trl_suite -k "test_train_loss_types"        a part

`PREFKIT_TRL_TESTS` is a checkout of TRL's repository, or a bare one; `path@revision` takes another
revision than its HEAD. The tests are taken from there each time and are no part of this project.
Their models, tokenizers and datasets are on the Hub; here the names lead to small stand-ins that
are made on the spot (`hub`, `rows`): random weights of the same classes, real tokenizers with the
same chat templates, rows in the same formats.
"""
