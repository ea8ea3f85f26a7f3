"What the site says about a function or class: where its code is, what it does, and a table of its arguments instead of a signature."
import dataclasses
import html
import inspect
import io
import re
import tokenize
import typing
from importlib import import_module
from pathlib import Path

import pydantic
import yaml
from fastcore.docments import MarkdownRenderer, docments
from nbdev.doclinks import NbdevLookup

LOOKUP = NbdevLookup()
WORDS = yaml.safe_load((Path(__file__).parent / 'words.yml').read_text(encoding='utf-8'))


def plain(text: str) -> str:
    "`text` in a cell of a table, with nothing in it that Markdown would take for its own."
    return re.sub(r'[|*_]', lambda m: f'&#{ord(m[0])};', html.escape(text, quote=False))


def code(text: str) -> str:
    "`text` as code: HTML, so that nbdev does not turn a word that is also the name of a function into a link."
    return '<code>' + plain(text).replace("'", '&#39;').replace('"', '&#34;') + '</code>'  # straight quotes, as in Python


def prose(text: str) -> str:
    "A comment as one line of a table."
    parts = re.split(r'`([^`]+)`', ' '.join((text or '').split()))
    return ''.join(code(p) if n % 2 else plain(p) for n, p in enumerate(parts))


def type_name(annotation) -> str:
    "An annotation as it would be written."
    if annotation is inspect.Parameter.empty: return ''
    if annotation is None or annotation is type(None): return 'None'
    if isinstance(annotation, str): return annotation
    if hasattr(annotation, '__metadata__'): return type_name(annotation.__origin__)  # Annotated: the bounds are in the text beside it
    if any(hasattr(a, '__metadata__') for a in typing.get_args(annotation)):  # the bounds of what a tuple holds
        return f"{annotation.__origin__.__name__}[{', '.join('…' if a is ... else type_name(a) for a in annotation.__args__)}]"
    text = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, '__args__') else str(annotation)
    return re.sub(r'\b(?:[a-z_]\w*\.)+(?=\w)', '', text)


def default_name(value) -> str:
    "A default as it would be written; what is long is left out."
    if value is inspect.Parameter.empty: return ''
    if isinstance(value, type) or callable(value): return getattr(value, '__qualname__', repr(value))
    text = repr(value)
    return text if len(text) <= 40 else '…'


class Made:
    "The default that a factory makes anew for every instance."
    def __init__(self, factory): self.text = {'<lambda>': '…', 'dict': '{}', 'list': '[]'}.get(factory.__name__, f'{factory.__name__}()')
    def __repr__(self): return self.text


def field_comments(cls: type) -> dict[str, str]:
    "The comment beside each field in the body of a class, its bases' included."
    found = {}
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith('bioai_esol'): continue
        tokens = list(tokenize.generate_tokens(io.StringIO(inspect.getsource(base)).readline))
        comments = {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}
        for name in getattr(base, '__annotations__', {}):
            line = next((t.start[0] for t, after in zip(tokens, tokens[1:]) if t.string == name and after.string == ':' and t.start[1] == 4), None)
            if line in comments: found[name] = comments[line]
    return found


def fields(cls: type) -> list[tuple]:
    "(name, annotation, default, what it is) of a pydantic model or a dataclass."
    comments = field_comments(cls)
    if issubclass(cls, pydantic.BaseModel):
        out = []
        for name, f in cls.model_fields.items():
            default = inspect.Parameter.empty if f.is_required() else Made(f.default_factory) if f.default_factory else f.default
            out.append((name, f.annotation, default, f.description or comments.get(name, '')))
        return out
    out = []
    for f in dataclasses.fields(cls):
        default = Made(f.default_factory) if f.default_factory is not dataclasses.MISSING else f.default
        if default is dataclasses.MISSING: default = inspect.Parameter.empty
        if f.init: out.append((f.name, f.type, default, comments.get(f.name, '')))
    return out


def arguments(sym) -> list[tuple]:
    "(name, annotation, default, what it is) of each argument of a function, or of what makes an instance of a class."
    def words(name): return WORDS.get(f"{sym.__name__}.{name.strip('*')}") or WORDS.get(name.strip('*'), '')
    return [(name, kind, default, text or words(name)) for name, kind, default, text in _arguments(sym)]


def _arguments(sym) -> list[tuple]:
    if isinstance(sym, type) and (dataclasses.is_dataclass(sym) or issubclass(sym, pydantic.BaseModel)): return fields(sym)
    if isinstance(sym, type) and '__init__' not in vars(sym): return []
    target = sym.__init__ if isinstance(sym, type) else sym
    try: comments = docments(target, args_kwargs=True)
    except (TypeError, ValueError): comments = {}
    stars = {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}
    return [(stars.get(p.kind, '') + name, p.annotation, p.default, comments.get(name) or '')
            for name, p in inspect.signature(target).parameters.items() if name not in ('self', 'cls')]


def returned(sym) -> tuple | None:
    "(annotation, what it is) of what a function returns; None for a class, and where nothing is returned."
    if isinstance(sym, type): return None
    annotation = inspect.signature(sym).return_annotation
    text = docments(sym).get('return') or ''
    return None if annotation in (inspect.Signature.empty, None) and not text else (annotation, text)


def table(sym) -> str:
    "The arguments as a Markdown table."
    rows = [(code(name), type_name(kind), default_name(value), prose(text)) for name, kind, value, text in arguments(sym)]
    back = returned(sym)
    if back: rows.append(('*returns*', type_name(back[0]), '', prose(back[1])))
    if not rows: return 'No arguments.'
    lines = ['| argument | type | default | |', '|---|---|---|---|']
    return '\n'.join(lines + [f"| {name} | {code(kind) if kind else ''} | {code(value) if value else ''} | {text} |" for name, kind, value, text in rows])


def packaged(sym):
    """The function or class as the package has it: nbdev's copy comes from a notebook's cells, so it does not know its module,
    and of a class Python then finds no source. Two modules may have one name; the docstring tells them apart."""
    for module, names in LOOKUP.entries['bioai_esol']['syms'].items():
        if f'{module}.{sym.__qualname__}' in names:
            found = getattr(import_module(module), sym.__qualname__)
            if found.__doc__ == sym.__doc__: return found
    return sym


class Renderer(MarkdownRenderer):
    "nbdev calls it for every exported function and class: the heading, a link to the code, the docstring, the table."
    def _repr_markdown_(self):
        sym = packaged(self.sym)
        entry = LOOKUP[f'{sym.__module__}.{sym.__qualname__}']
        link = f' <a class="source" href="{entry[2]}#L{inspect.getsourcelines(sym)[1]}">source</a>' if entry else ''
        return f"{'#' * self.title_level} {self.nm}\n\n{self.docs or ''}{link}\n\n::: {{.arguments}}\n\n{table(sym)}\n\n:::\n"
