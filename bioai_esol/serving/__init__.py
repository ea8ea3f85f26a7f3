"Asking the champion. Versions that are registered already load their model by `from bioai_esol.serving import SolubilityModel`."


def __getattr__(name: str):
    if name != 'SolubilityModel':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from bioai_esol.serving.endpoint import SolubilityModel
    return SolubilityModel
