"""What smalldocs leaves to do on a page: which columns of a table hold numbers and which hold sentences, where a command begins and where
its output does, how large a picture is. Most of it is classes; site.css says what they look like."""
import base64
import html
import re
import struct
from pathlib import Path
from urllib.parse import unquote

NUMBER = re.compile(r'[\s\d.,…±()\[\]%+\-−–×:/<>=~^]*\d[\s\d.,…±()\[\]%+\-−–×:/<>=~^]*(?:e[+\-−]?\d+)?\s?(?:[kMG]i?B|ms|s|min|h|x|×)?\)?')
NOTHING = re.compile(r'\s*|[–—-]|\.\.\.|…|nan|NaN|None|inf|NaT|<NA>')
LONG = 22  # characters: a cell of more is read as a sentence, and may be broken into lines
SHELLS = {'sh', 'bash', 'console', 'shell'}


def words(cell: str) -> str:
    "The text of a cell."
    return ' '.join(html.unescape(re.sub(r'<[^>]+>', ' ', cell)).split())


def kind(texts: list[str]) -> str:
    "What a column holds."
    told = [t for t in texts if not NOTHING.fullmatch(t)]
    if told and all(NUMBER.fullmatch(t) for t in told): return 'number'
    if any(len(t) > LONG and ' ' not in t for t in told): return 'name'  # a SMILES, a run's id: no spaces to break it at
    return 'sentence' if any(len(t) > LONG for t in told) else 'word'


def one_head(body: str) -> str:
    "The head of a table of pandas in one row: the name of its index stands in a second, with nothing beside it."
    rows = re.findall(r'<tr\b.*?</tr>', body[:body.find('</thead>')], flags=re.S) if '</thead>' in body else []
    cells = [re.findall(r'<th\b[^>]*>(.*?)</th>', row, flags=re.S) for row in rows]
    if len(rows) != 2 or len(cells[0]) != len(cells[1]) or any(words(a) and words(b) for a, b in zip(*cells)): return body
    merged = iter(a if words(a) else b for a, b in zip(*cells))
    return body.replace(rows[1], '', 1).replace(rows[0], re.sub(r'(<th\b[^>]*>)(.*?)(</th>)', lambda m: m[1] + next(merged) + m[3], rows[0], flags=re.S), 1)


def table(m: re.Match) -> str:
    "A table whose cells know what their column holds; without the column that only counts its rows."
    opening, body = m[1], one_head(m[2])
    if re.search(r'(?:col|row)span="?[2-9]', body) or '<table' in body: return m[0]
    rows = [re.findall(r'<(t[hd])\b([^>]*)>(.*?)</\1>', row, flags=re.S) for row in re.findall(r'<tr\b.*?</tr>', body, flags=re.S)]
    heads = [row for row in rows if all(tag == 'th' for tag, _, _ in row)]
    cells = [[words(text) for _, _, text in row] for row in rows if row not in heads]
    width = max(map(len, cells), default=0)
    if not width or any(len(row) != width for row in cells): return m[0]
    counts = 'dataframe' in opening and [row[0] for row in cells] == [str(n) for n in range(len(cells))] and not words(heads[0][0][2] if heads else 'x')
    kinds = [kind([row[n] for row in cells]) for n in range(width)]
    def row(r):
        n = -1
        def cell(c):
            nonlocal n
            n += 1
            tag, attributes, text = c[1], re.sub(r' style="text-align: \w+;?"', '', c[2]), c[3]
            if counts and n == 0: return ''
            if n >= width: return c[0]
            if r[0] in headers and '<' not in text: text = re.sub(r'(?<=\w)_(?=\w)', '_<wbr>', text)
            found = re.search(r'class="([^"]*)"', attributes)
            attributes = attributes.replace(found[0], f'class="{found[1]} {kinds[n]}"') if found else f'{attributes} class="{kinds[n]}"'
            return f'<{tag}{attributes}>{text}</{tag}>'
        return re.sub(r'<(t[hd])\b([^>]*)>(.*?)</\1>', cell, r[0], flags=re.S)
    headers = {r for r in re.findall(r'<tr\b.*?</tr>', body, flags=re.S) if not re.search(r'<td\b', r)}
    def least(n):  # characters that a column takes at least
        head = max((len(part) for row in heads if n < len(row) for part in re.split(r'[_ ]', words(row[n][2]))), default=0)
        texts = [row[n] for row in cells]
        inside = max((len(t) for t in texts), default=0) if kinds[n] in ('number', 'word') else 22 if kinds[n] == 'sentence' else 16
        return max(head + 1, inside) + 2
    wide = sum(map(least, range(counts, width)))
    close = 'dense' if wide > 112 else 'close' if wide > 96 else ''
    if close and 'class="' in opening: opening = opening.replace('class="', f'class="{close} ', 1)
    elif close: opening = opening.replace('<table', f'<table class="{close}"', 1)
    return opening + re.sub(r'<tr\b.*?</tr>', row, body, flags=re.S) + '</table>'


def commands(code: str) -> str:
    "A block of shell commands with a mark where each begins, which is shown and not copied."
    if '&lt;&lt;' in code: return f'<span class="prompt"></span>{code}'  # lines of a here-document are no commands
    out, goes_on = [], False
    for line in code.split('\n'):
        text = html.unescape(re.sub(r'<[^>]+>', '', line)).strip()
        out.append(line if goes_on or not text or text.startswith('#') else f'<span class="prompt"></span>{line}')
        goes_on = text.endswith('\\')
    return '\n'.join(out)


def session(code: str) -> str:
    "A block of what is typed at Python's prompt, which is shown and not copied."
    def prompt(m): return '<span class="prompt python"></span>' if m[1] == '&gt;&gt;&gt; ' else '<span class="prompt more"></span>'
    return re.sub(r'^(&gt;&gt;&gt; |\.\.\. )', prompt, code, flags=re.M)


def is_row(line: str) -> bool:
    "Is a line of an output a row of columns, and not a sentence?"
    return bool(re.search(r'\S {2,}\S.*\S {2,}\S', line) or re.match(r' {4,}\S+ {2,}\S', line))


def lines(code: str) -> str:
    "The lines of an output, each known as a row of columns or as a sentence."
    return ''.join(f'<span class="{"columns" if is_row(html.unescape(line)) else "sentence"}">{line}</span>' for line in code.split('\n'))


def width_class(code: str) -> str:
    "How closely an output has to be set, so that its rows are not broken; not at all where they would be too small to read."
    longest = max((len(html.unescape(line)) for line in code.split('\n') if is_row(html.unescape(line))), default=0)
    return ' close' if 98 < longest <= 107 else ' dense' if 107 < longest <= 128 else ''


def block(m: re.Match) -> str:
    "A block of code: commands, or what a program answered, or another language, which stays as it is."
    before, language, code, after = m[1], m[2].strip(), m[3], m[4]
    if language in SHELLS: return before + f'<code class="sourceCode {language}">' + commands(code) + after
    if language == 'pycon': return before + '<code class="sourceCode pycon">' + session(code) + after
    if language: return m[0]
    return before.replace('<pre class="', f'<pre class="output{width_class(code)} ') + '<code class="sourceCode">' + lines(code) + after


def answer(m: re.Match) -> str:
    "What a cell printed."
    return f'{m[1]}<pre class="output{width_class(m[2])}"><code>{lines(m[2])}</code></pre>'


def picture(m: re.Match, place: Path) -> str:
    """A picture that says how large it is, so that nothing moves when it arrives; PNG says it in its head. One that is written into the page
    is taken from the file that the page's copy in Markdown shows, so that it is fetched when it comes into view."""
    image, source = m[0], html.unescape(re.search(r'\bsrc="([^"]*)"', m[0])[1])
    if source.startswith('data:'):
        data = base64.b64decode(source.partition(',')[2])
        folder = place.with_name(f'{place.stem}_files')
        file = next((f for f in folder.glob('*.png') if f.read_bytes() == data), None)
        if file: image = image.replace(html.escape(source), f'{folder.name}/{file.name}').replace('<img', '<img loading="lazy"', 1)
    else: data = (place.parent / unquote(source)).read_bytes()
    if data[:4] != b'\x89PNG' or re.search(r'\b(width|height)=', image): return image
    width, height = struct.unpack('>II', data[16:24])
    return image.replace('<img', f'<img width="{width}" height="{height}"', 1)


def twin(page: str, place: Path) -> str:
    "The head of a page that has a copy in Markdown, with where that is."
    copy = place.with_suffix('.llms.md')
    return page.replace('</head>', f'<link rel="alternate" type="text/markdown" href="{copy.name}">\n</head>', 1) if copy.exists() else page


def landmarks(page: str) -> str:
    "The parts of a page under names of their own, for whoever has them read out; and a sidebar whose sections open from the keyboard."
    for nav, name in (('class="navbar ', 'Site'), ('class="quarto-secondary-nav"', 'This page'), ('id="quarto-sidebar"', 'Pages'),
                      ('class="page-navigation"', 'Previous and next page')):
        page = page.replace(f'<nav {nav}', f'<nav aria-label="{name}" {nav}')
    page = re.sub(r'(<a class="sidebar-item-toggle[^>]*?data-bs-target="(#[^"]*)")', r'\1 href="\2"', page)
    return page.replace('role="navigation" aria-expanded', 'role="button" aria-expanded')


def touched_up(page: str, place: Path) -> str:
    "The page that lies at `place`, touched up."
    page = landmarks(twin(page, place))
    page = re.sub(r'<img\b[^>]*>', lambda m: picture(m, place), page)
    page = re.sub(r'(<table\b[^>]*>)(.*?)</table>', table, page, flags=re.S)
    page = re.sub(r'(<pre class="[^"]*">)<code class="sourceCode ?([\w-]*)">(.*?)(</code></pre>)', block, page, flags=re.S)
    return re.sub(r'(<div class="cell-output[^"]*">\s*)<pre><code>(.*?)</code></pre>', answer, page, flags=re.S)
