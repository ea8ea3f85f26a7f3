"""The copies of pages in Markdown, for programs that read the documentation, and llms.txt, which lists them: smalldocs writes both. Here
tables and signatures become Markdown, what only a browser needs goes, and the list is in the order of the sidebar and says what each page is."""
import html
import re
from pathlib import Path, PurePosixPath

import touch_up

BAR = r'\|'
CODE = re.compile(r'^(`{3,}).*?^\1$|(`+)[^`\n]+?\2', flags=re.M | re.S)  # blocks, and code within a line
SIGNATURE = re.compile(r'<div class="signature"><span>(?:<em>(\w+)</em> )?<code>(.*?)</code></span>(?:<a class="source" href="([^"]*)">source</a>)?</div>')
FRAME = re.compile(r'^<iframe\b[^>]*?\btitle="([^"]*)"[^>]*></iframe>$', flags=re.M)
LEFT = re.compile(r'</?(?:div|p|span|section|figure|figcaption|details|summary|sub|sup|i|h\d|wbr)\b[^>]*>')


def cell(text: str) -> str:
    "What a cell holds; SMILES that would be a link is code."
    told = touch_up.words(text).replace('|', BAR)
    return f'`{told}`' if '](' in told else told


def table(m: re.Match) -> str:
    "A table of HTML as one of Markdown."
    rows = re.findall(r'<tr\b.*?</tr>', touch_up.one_head(m[0]), flags=re.S)
    cells = [[cell(text) for text in re.findall(r'<t[hd]\b[^>]*>(.*?)</t[hd]>', row, flags=re.S)] for row in rows]
    if not cells: return ''
    lines = [cells[0], ['---'] * len(cells[0]), *cells[1:]]
    return '\n\n' + '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n\n'


def code(text: str) -> str:
    "Code within a line; a bar is written so that it ends no cell."
    return f'`{html.unescape(re.sub("<[^>]+>", "", text.replace("&#124;", BAR)))}`'


def signature(m: re.Match) -> str:
    "How something is called, and where its code is."
    return f'{m[1] + " " if m[1] else ""}{code(m[2]).replace(BAR, "|")}' + (f' ([source]({m[3]}))' if m[3] else '')


def prose(text: str) -> str:
    "What is between code, without HTML."
    text = re.sub(r'<!--.*?-->|<style\b.*?</style>|<script\b.*?</script>|^:::[^\n]*$', '', text, flags=re.M | re.S)
    text = re.sub(r'<svg\b.*?</svg>', '*A drawing that the page shows.*', text, flags=re.S)
    text = re.sub(r'<table\b.*?</table>', table, SIGNATURE.sub(signature, text), flags=re.S)
    text = re.sub(r'<code>(.*?)</code>', lambda m: code(m[1]), text)
    text = re.sub(r'<a\b[^>]*?\bhref="([^"]*)"[^>]*>(.*?)</a>', r'[\2](\1)', text, flags=re.S)
    text = re.sub(r'</?(em|b|strong)>', lambda m: '*' if m[1] == 'em' else '**', re.sub(r'<br */?>', '\n', text))
    text = re.sub(r'&#(\d+);', lambda m: chr(int(m[1])), text.replace('&#124;', BAR))
    return LEFT.sub('', text)


def plain(copy: str) -> str:
    "A copy without HTML; code stays as it is."
    copy = FRAME.sub(r'*\1 (charts that the page shows)*', copy)  # first: the program in it has backticks too
    parts, at = [], 0
    for m in CODE.finditer(copy):
        parts += [prose(copy[at:m.start()]), m[0]]
        at = m.end()
    text = ''.join([*parts, prose(copy[at:])])
    return re.sub(r'\n\s*\n\s*\n(?=\S)', '\n\n', text).strip() + '\n'


def pages(contents: list):
    "The addresses of everything in a part of the sidebar."
    for item in contents:
        if isinstance(item, str): yield item
        else:
            if 'href' in item: yield item['href']
            yield from pages(item.get('contents', []))


def index(site: dict, folder: Path) -> str:
    "llms.txt: the sections of the sidebar, and of each page its title, its copy and what it is about."
    parts = [f"# {site['title']}", f"> {site['description']}"]
    for section in site['sidebar']['contents']:
        rows = []
        for href in pages([section]):
            copy = PurePosixPath(href).with_suffix('.llms.md')
            title, about, *_ = (folder / copy).read_text(encoding='utf-8').split('\n\n')
            said = ': ' + ' '.join(about.split()) if re.match(r'[^\W\d_]', about) else ''
            rows.append(f"- [{title.removeprefix('# ')}]({site['site-url'].rstrip('/')}/{copy}){said}")
        parts += [f"## {section['section']}", '\n'.join(rows)]
    return '\n\n'.join(parts) + '\n'
