"What the site says about a function or class: how it is called, where its code is, what it does, a table of its arguments; of a class, each method too."
import dataclasses
import functools
import html
import inspect
import io
import itertools
import re
import tokenize
import typing
import warnings
from importlib import import_module

import numpy.typing
import pydantic
from fastcore.docments import docments
from nbdev.doclinks import NbdevLookup

LOOKUP = NbdevLookup()
UNTOLD = []  # module.function.argument of each argument that nothing explains


def plain(text: str) -> str:
    "`text` in a cell of a table, with nothing in it that Markdown would take for its own."
    text = re.sub(r'[][|*_~^$@#`\\\\]', lambda m: f'&#{ord(m[0])};', html.escape(text, quote=False))
    return re.sub(r'-(?=-)|\.(?=\.)', lambda m: f'{m[0]}<span></span>', text)  # two of them would become one character


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
    text = text.replace(str(numpy.typing.ArrayLike), 'ArrayLike')  # numpy has no name for it when it is asked
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
    rows = _arguments(sym)
    UNTOLD.extend(f'{sym.__module__}.{sym.__qualname__}.{name}' for name, _, _, text in rows if not text)
    return rows


def _arguments(sym) -> list[tuple]:
    if isinstance(sym, type) and (dataclasses.is_dataclass(sym) or issubclass(sym, pydantic.BaseModel)):
        said = dict(pair for base in reversed(sym.__mro__) for pair in parameters(base).items())
        return [(name, kind, default, text or said.get(name, '')) for name, kind, default, text in fields(sym)]
    if isinstance(sym, type) and ('__init__' not in vars(sym) or getattr(sym, '_is_protocol', False)): return []
    target = sym.__init__ if isinstance(sym, type) else sym
    said = {}
    for function in [*reversed(overridden(sym)), target]:
        said |= {name: text for told in (parameters(function), comments(function)) for name, text in told.items() if text}
    said = parameters(sym) | said
    stars = {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}
    return [(stars.get(p.kind, '') + name, p.annotation, p.default, said.get(name) or '')
            for name, p in inspect.signature(target).parameters.items() if name not in ('self', 'cls')]


def parameters(sym) -> dict[str, str]:
    "What a docstring says of each argument."
    return {name.strip('*'): text for names, text in described(sym, 'Parameters').items() for name in names.split(', ')}


def overridden(sym) -> list:
    "The methods of ours that a method stands in for: what they say of an argument holds here too."
    *path, name = sym.__qualname__.split('.')
    if isinstance(sym, type) or not path: return []
    cls = getattr(import_module(sym.__module__), path[0])
    found = (vars(base).get(name) for base in cls.__mro__[1:] if base.__module__.startswith('bioai_esol'))
    return [getattr(f, '__func__', f) for f in found if f]


def comments(function) -> dict:
    """The comment beside each argument, and under `return` the one beside what comes back. Where all of it is on one line the comment
    is `first; second -> what comes back`."""
    function = inspect.unwrap(function)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # fastcore reads docstrings as well, and knows fewer headings
        found = docments(function, args_kwargs=True)
    told, arrow, back = (found.get('return') or '').partition(' -> ')
    silent = [name for name, text in found.items() if not text and name not in ('self', 'cls', 'return')]
    if arrow and len(told.split('; ')) == len(silent): found |= dict(zip(silent, told.split('; '))) | {'return': back}
    return found


def sections(sym) -> dict[str, str]:
    "A docstring by its parts: under '' what it says first, under each of numpy's headings what stands there."
    doc = inspect.cleandoc(vars(sym).get('__doc__') or '') if isinstance(sym, type) else inspect.getdoc(sym) or ''
    first, *rest = re.split(r'^([A-Z][A-Za-z ]+)\n-{3,} *(?:\n|$)', doc, flags=re.M)
    return {'': first.strip(), **{title: text.strip('\n') for title, text in zip(rest[::2], rest[1::2])}}


def described(sym, section: str) -> dict[str, str]:
    "What stands at the margin of a section of the docstring, without a type behind a colon: what is indented under it."
    found, last = {}, None
    for row in sections(sym).get(section, '').splitlines():
        if row.strip() and not row.startswith(' '): found[last := re.split(r' ?:', row)[0].strip()] = ''
        elif last is not None: found[last] = f'{found[last]} {row.strip()}'.strip()
    return found


def returned(sym) -> tuple | None:
    "(annotation, what it is) of what a function returns; None for a class, and where nothing is returned."
    if isinstance(sym, type): return None
    annotation = inspect.signature(sym).return_annotation
    text = comments(sym).get('return') or ''
    text = text or ' '.join(described(sym, 'Returns').values())
    return None if annotation in (inspect.Signature.empty, None) and not text else (annotation, text)


def table(sym) -> str:
    "The arguments as a Markdown table; empty where there are none."
    rows = [(code(name), type_name(kind), default_name(value), prose(text)) for name, kind, value, text in arguments(sym)]
    back = returned(sym)
    if back: rows.append(('*returns*', type_name(back[0]), '', prose(back[1])))
    if not rows: return ''
    lines = ['| argument | type | default | meaning |', '|---|---|---|---|']
    lines += [f"| {name} | {code(kind) if kind else ''} | {code(value) if value else ''} | {text} |" for name, kind, value, text in rows]
    return '\n'.join(['::: {.arguments}', '', *lines, '', ':::'])


def call(sym) -> str:
    "How a function is called: its arguments with their defaults."
    shown, only = [], False
    for p in inspect.signature(sym).parameters.values():
        if p.name in ('self', 'cls') and not shown: continue
        if p.kind is p.KEYWORD_ONLY and not only: shown.append('*')
        only = only or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        star = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '')
        shown.append(f'{star}{p.name}' + ('' if p.default is p.empty else f'={default_name(p.default)}'))
    back = type_name(inspect.signature(sym).return_annotation)
    return f"({', '.join(shown)})" + (f' → {back}' if back and back != 'None' else '')


def docstring(sym) -> str:
    "What a docstring says, without what the table says."
    doc = sections(sym)
    parts = [doc['']]
    if 'Raises' in doc: parts.append('\n'.join(['**Raises**', '', *(f'- {code(name)}: {prose(text)}' for name, text in described(sym, 'Raises').items())]))
    parts += [doc[name] for name in ('Notes', 'References') if name in doc]
    for name in ('Examples', 'Example'):
        if name in doc: parts.append(f'**Example**\n\n{example(doc[name])}')
    if 'See Also' in doc: parts.append('See also ' + ', '.join(f'`{name}()`' for names in described(sym, 'See Also') for name in names.split(', ')) + '.')
    return '\n\n'.join(filter(None, parts))


def example(text: str) -> str:
    "The examples of a docstring as code: blocks of what is typed, and of what is answered; sentences between them stay sentences."
    parts = []
    for block in re.split(r'\n\s*\n', re.sub(r' *# doctest:.*', '', text)):
        if not block.lstrip().startswith('>>>'): parts.append(block)
        else: parts += [session(typed, rows) for typed, rows in itertools.groupby(block.splitlines(), lambda row: row.startswith(('>>> ', '... ')))]
    return '\n\n'.join(parts)


def session(typed: bool, rows) -> str:
    "Lines of a session with Python: what is typed, or what is answered."
    return '\n'.join([f"```{'pycon' if typed else ''}", *rows, '```'])


def packaged(sym):
    """The function or class as the package has it: nbdev's copy comes from a notebook's cells, so it does not know its module,
    and of a class Python then finds no source. Two modules may have one name; the docstring tells them apart."""
    for module, names in LOOKUP.entries['bioai_esol']['syms'].items():
        if f'{module}.{sym.__qualname__}' in names:
            found = import_module(module)
            for part in sym.__qualname__.split('.'): found = getattr(found, part)
            if found.__doc__ == sym.__doc__: return found
    return sym


def source(sym) -> str:
    "A link to the first line of the code."
    entry = LOOKUP[f'{sym.__module__}.{sym.__qualname__}']
    return f'<a class="source" href="{entry[2]}#L{inspect.getsourcelines(sym)[1]}">source</a>' if entry else ''


def members(cls: type) -> list[tuple]:
    "(name, kind, function) of each public method and property that a class defines itself, in the order of its source."
    checks = getattr(cls, '__pydantic_decorators__', None)
    made = {*checks.field_validators, *checks.model_validators, 'model_post_init'} if checks else set()
    found = []
    for name, value in vars(cls).items():
        if name.startswith('_') or name in made: continue
        if isinstance(value, property): found.append((name, 'property', value.fget))
        elif isinstance(value, functools.cached_property): found.append((name, 'property', value.func))
        elif isinstance(value, classmethod | staticmethod): found.append((name, type(value).__name__, value.__func__))
        elif inspect.isfunction(value): found.append((name, 'method', value))
    return [row for row in found if row[2].__module__ == cls.__module__]


def line(title: str, sym, kind: str = '') -> str:
    "The line under a heading: how it is called, and where its code is."
    return f'<div class="signature"><span>{f"<em>{kind}</em> " if kind else ""}{code(title)}</span>{source(sym)}</div>'


def member(cls: type, name: str, kind: str, function, level: int) -> str:
    "A method or property, under a heading of its own."
    title = f'{cls.__name__}.{name}'
    if kind == 'property':
        back = type_name(inspect.signature(function).return_annotation)
        told, rows = line(name + (f' → {back}' if back else ''), function, 'property'), ''
    else: told, rows = line(name + call(function), function, {'method': ''}.get(kind, kind)), table(function)
    doc = docstring(getattr(cls, name) if kind == 'method' else function)
    return '\n\n'.join(filter(None, [f"{'#' * level} {title} {{#{title.lower()} .member}}", told, doc, rows]))


class Renderer:
    "nbdev calls it for every exported function and class: the heading, a link to the code, the docstring, the table; then the methods of a class."
    def __init__(self, sym, name=None, title_level=3): self.sym, self.nm, self.title_level = sym, name or sym.__qualname__, title_level

    def _repr_markdown_(self):
        sym = packaged(self.sym)
        made = isinstance(sym, type)
        told = line(f'{sym.__name__}{"" if made else call(sym)}', sym, 'class' if made else '')
        parts = [f"{'#' * self.title_level} {self.nm}", told, docstring(sym), table(sym)]
        if made: parts += [member(sym, *row, level=self.title_level + 1) for row in members(sym)]
        return '\n\n'.join(filter(None, parts)) + '\n'
