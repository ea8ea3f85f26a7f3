"The pages of the command line: one for each command of `bioai-esol`, from the parser that also prints its --help."
import argparse
import re

from renderer import code, prose

from bioai_esol.cli.parser import make_parser


def commands(top: argparse.ArgumentParser) -> dict[str, tuple[str, argparse.ArgumentParser]]:
    "Each command: what it does in a few words, and its parser."
    group = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    return {a.dest: (a.help, group.choices[a.dest]) for a in group._choices_actions}


def paragraphs(text: str) -> str:
    "Text of a --help as Markdown: paragraphs, and indented lines as they stand."
    blocks = []
    for block in re.split(r'\n\s*\n', (text or '').strip('\n')):
        if re.search(r'^  ', block, flags=re.M): blocks.append(f'```text\n{block}\n```')
        elif block.strip(): blocks.append(prose(block))
    return '\n\n'.join(blocks)


def names(action: argparse.Action) -> str:
    "How an argument is written."
    value = action.metavar or ('{' + ','.join(map(str, action.choices)) + '}' if action.choices else action.dest.upper())
    if not action.option_strings: return code(value if isinstance(value, str) else ' '.join(value))
    takes = '' if action.nargs == 0 else f' {value}'
    return ', '.join(code(name + takes) for name in action.option_strings)


def default(action: argparse.Action, text: str) -> tuple[str, str]:
    "(default, text without it): as the help says it, else what the parser holds."
    said = re.search(r' *\((?:the )?default:? ((?:[^()]|\([^()]*\))*)\)', text)
    if said: return said[1], text[:said.start()] + text[said.end():]
    if action.required and action.option_strings: return 'required', text
    if action.default in (None, False, argparse.SUPPRESS, []) or not action.option_strings: return '', text
    return str(action.default), text


def table(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> str:
    "The arguments of one group."
    rows = []
    for action in group._group_actions:
        if action.help is argparse.SUPPRESS or isinstance(action, argparse._HelpAction | argparse._SubParsersAction): continue
        otherwise, text = default(action, parser._get_formatter()._expand_help(action) if action.help else '')
        if action.choices and action.metavar and not all(str(c) in text for c in action.choices): text += f"; one of {', '.join(map(str, action.choices))}"
        rows.append(f'| {names(action)} | {prose(otherwise)} | {prose(text)} |')
    if not rows: return ''
    head = 'option' if group._group_actions[0].option_strings else 'argument'
    return '\n'.join([f'| {head} | default | meaning |', '|---|---|---|', *rows])


def sections(parser: argparse.ArgumentParser) -> str:
    "Usage, what it does, a table for each group of arguments, exit status."
    formatter = parser.formatter_class(prog=parser.prog, width=96)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix='')
    parts = [f'```text\n{formatter.format_help().strip()}\n```', paragraphs(parser.description)]
    for group in parser._action_groups:
        rows = table(parser, group)
        if rows:
            title = {'positional arguments': 'Arguments', 'options': 'Options'}.get(group.title, (group.title or '').capitalize())
            parts += [f'## {title}', paragraphs(group.description), f'::: {{.options}}\n\n{rows}\n\n:::']
    title, found, rest = (parser.epilog or '').partition(':')
    if found and re.fullmatch(r'[A-Z][\w ]{,30}', title): parts += [f'## {title}', paragraphs(rest.strip())]
    elif parser.epilog: parts.append(paragraphs(parser.epilog))
    return '\n\n'.join(filter(None, parts))


def pages() -> dict[str, str]:
    "Name and Markdown of each page, the list of all commands first, as `index`."
    top = make_parser()
    found = commands(top)
    def head(title, text): return f'---\ntitle: "{title}"\ndescription: "{text[0].upper()}{text[1:]}"\n---\n\n'
    listed = '\n'.join(['| command | |', '|---|---|', *(f'| [{code(name)}]({name}.md) | {prose(text)} |' for name, (text, _) in found.items())])
    out = {'index': head('Command line', f'The {len(found)} commands of {top.prog}') + f'{listed}\n\n## In short\n\n{sections(top)}\n'}
    for name, (text, parser) in found.items():
        first, _, more = (parser.description or '').partition('\n\n')
        parser.description = more if first.rstrip('.').lower() == text.lower() else parser.description  # the head of the page says it
        out[name] = head(f'{top.prog} {name}', text) + sections(parser) + '\n'
    return out
