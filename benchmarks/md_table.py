"A table in Markdown, with columns as wide as what is in them: what benchmarks write."


def table(header, rows):
    lines = [list(map(str, row)) for row in (header, ['---'] * len(header), *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join('| ' + ' | '.join(cell.ljust(w) for cell, w in zip(line, widths)) + ' |' for line in lines)
