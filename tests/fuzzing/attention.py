"""Networks of attentions in any words of the language, and what is known about each."""

from dataclasses import dataclass, field, fields, replace

from fuzzing.language import (
    BEHIND,
    CAP,
    LANGUAGE,
    LAYOUTS,
    MASKS,
    MERGES,
    NEEDS,
    NORMS,
    PACKINGS,
    POSITIONS,
    ROTARIES,
    SOFTMAXES,
    SOURCES,
    WITH_FEW,
    WITH_MEMORY,
    FiveAxes,
    Form,
    Heads,
    Layout,
    Scores,
    Sizes,
    repeated_by,
)  # fmt: skip
from fuzzing.net import Net, Size, Style, Value, is_dynamic, product
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto

# Tokens in windows are on a grid of 4×4, in windows of 2×2; those that are pooled on one of 4×2.
SIDE, WINDOW, POOLED = 4, 2, 8


@dataclass
class Made:
    """An attention that was written down, and what is known about it."""

    form: Form
    sizes: Sizes
    heads: int
    tokens: int
    path: set[str] = field(default_factory=set)
    """The tensors between its product with the values and its output projection."""
    probabilities: set[str] = field(default_factory=set)

    @property
    def is_dynamic(self) -> bool:
        return self.sizes.is_dynamic

    @property
    def is_constant(self) -> bool:
        """Whether a part of it has one value only: probabilities of one key, a norm of one."""
        return self.sizes.keys == 1 or (self.form.norm != "none" and self.sizes.width == 1)


@dataclass(frozen=True)
class Network:
    """A model, its attentions, and the tensors that something besides them reads."""

    model: ModelProto
    made: list[Made]
    tapped: set[str]
    is_dynamic: bool

    def __repr__(self) -> str:
        """What differs from the plain form: what Hypothesis prints of a counterexample."""
        forms = {text(m.form): m.sizes for m in self.made}
        opset = self.model.opset_import[0].version
        return f"Network(opset={opset}, {forms}, tapped={sorted(self.tapped)})"


def text(form: Form) -> str:
    """The parts of a form that are not plain."""
    plain = Form()
    told = [(f.name, getattr(form, f.name)) for f in fields(form)]
    return ", ".join(f"{name}={word}" for name, word in told if word != getattr(plain, name))


# -- one attention ---------------------------------------------------------------------------------


def attend(net: Net, form: Form, sizes: Sizes, x: Value, key: object) -> tuple[Value, Made]:
    """An attention over tokens, projections included."""
    made = Made(form, sizes, sizes.heads, sizes.tokens)
    memory = SOURCES[form.source](net, x, sizes, form, key)
    query, keys, values = PACKINGS[form.packing](net, form, sizes, x, memory, key)
    query, keys, values = (
        Heads(h.arranged(net, in_order(h)), in_order(h))
        if form.norm_late or not h.order.endswith("d") else h
        for h in (query, keys, values)
    )  # fmt: skip
    query, keys = (h.like(NORMS[form.norm](net, h.value, (key, "norm", name)))
                   for name, h in (("q", query), ("k", keys)))  # fmt: skip
    query, keys = (h.like(ROTARIES[form.rotary](net, h)) for h in (query, keys))
    if form.cache:
        keys, values = (cached(net, sizes, h, key, name)
                        for name, h in (("key", keys), ("value", values)))  # fmt: skip
        sizes = replace(sizes, keys=keys.value.shape[2])
    scores_of = Scores(net, sizes, query, key)
    terms = [term(scores_of) for term in (POSITIONS[form.position], MASKS[form.mask]) if term]
    if form.softmax == "Attention":
        result = attention_op(net, form, sizes, (query, keys, values), terms)
        made.path.add(result.value.name)
    else:
        if form.repeat not in ("five axes", "broadcast") and sizes.few < sizes.heads:
            times = sizes.heads // sizes.few
            keys, values = (repeated_by(net, h, times, form.repeat) for h in (keys, values))
        result = attend_in(layout(net, form, sizes), (query, keys, values), terms, made)
    before = len(net.values)
    width = x.shape[-1]
    y = MERGES[form.merge](net, form, result, key, width)
    made.path |= {value.name for value in net.values[before:]} | {result.value.name}
    return y, made


def in_order(heads: Heads) -> str:
    return "".join(sorted(heads.order, key="bhnd".index))


def layout(net: Net, form: Form, sizes: Sizes) -> Layout:
    if form.repeat == "five axes" and sizes.few < sizes.heads:
        return FiveAxes(net, form, sizes)
    return LAYOUTS[form.layout](net, form, sizes)


def cached(net: Net, sizes: Sizes, heads: Heads, key: object, name: str) -> Heads:
    """Past keys come in as an input, all of them go out."""
    batch = sizes.batch
    past = net.input(f"past_{name}_{key}", (batch, sizes.few, 3, sizes.width))
    present = net.concat([past, heads.arranged(net, "bhnd")], 2)
    net.output(present)
    return Heads(present, "bhnd")


def attend_in(
    place: Layout, qkv: tuple[Heads, Heads, Heads], terms: list[Value], made: Made
) -> Heads:
    """Scores, probabilities, and the product with the values, in a layout."""
    net, form = place.net, place.form
    # Without a reshape the heads of the key stay apart: they are broadcast.
    query, keys, values = qkv
    scale = place.sizes.width**-0.5
    q = place.enter(query)
    if form.scale in ("query", "both", "vector"):
        factor = net.constant([scale]) if form.scale == "vector" else scale**0.5
        q = net.binary("Mul", q, factor if form.scale != "query" else scale)
    turned = place.turned(keys) if form.scores == "MatMul" else place.enter(keys)
    if form.scale in ("key", "both"):
        turned = net.binary("Mul", turned, scale if form.scale == "key" else scale**0.5)
    s = scores(place, q, turned)
    if form.scale in ("scores", "divided"):
        s = net.binary("Mul", s, scale) if form.scale == "scores" else net.binary("Div", s, 1.7)
    if form.cap:
        bent = net.unary("Tanh", net.binary("Div", s, CAP))
        s = net.binary("Mul", bent, CAP)
    if terms:
        s = place.on_scores(s, lambda apart: with_terms(place, apart, terms))
    p = SOFTMAXES[form.softmax](net, s)
    made.probabilities.add(p.name)
    p = BEHIND[form.behind](net, p)
    made.probabilities.add(p.name)
    v = place.enter(values)
    if form.values == "MatMul":
        o = net.matmul(p, v)
    else:
        lead = "abc"[: v.rank - 2]
        o = net.einsum(f"{lead}ij,{lead}jd->{lead}id", p, v)
    made.path.add(o.name)
    return place.leave(o)


def scores(place: Layout, q: Value, keys: Value) -> Value:
    """The keys come turned for a MatMul, else as they are."""
    net, form = place.net, place.form
    if form.scores == "Einsum":
        lead = "abc"[: q.rank - 2]
        return net.einsum(f"{lead}id,{lead}jd->{lead}ij", q, keys)
    if form.scores == "turned":  # (k qᵀ)ᵀ
        swap = [*range(q.rank - 2), q.rank - 1, q.rank - 2]
        return net.transpose(net.matmul(keys, net.transpose(q, swap)), swap)
    return net.matmul(q, keys)


def with_terms(place: Layout, s: Value, terms: list[Value]) -> Value:
    net = place.net
    for term in terms:
        fitting = place.term(term)
        if term.type == TensorProto.BOOL:
            s = net.where(fitting, s, net.constant(-1e4))
        else:
            s = net.binary("Add", s, fitting)
    return s


def attention_op(
    net: Net, form: Form, sizes: Sizes, qkv: tuple[Heads, Heads, Heads], terms: list[Value]
) -> Heads:
    """One op of opset 23, on [B, H, N, D] or on packed features."""
    mask = None
    for term in terms:
        mask = term if mask is None else net.binary("Add", mask, term)
    attributes = {} if form.scale == "none" else {"scale": 0.4}
    attributes |= {"softcap": CAP} if form.cap else {}
    attributes |= {"is_causal": 1} if form.mask == "none" and form.behind != "none" else {}
    extra = [] if mask is None else [mask]
    if form.layout == "folded":  # [B, N, H·D]
        packed = [h.arranged(net, "bnhd") for h in qkv]
        rows = [net.reshape(v, *v.shape[:2], product(v.shape[2:])) for v in packed]
        attributes |= {"q_num_heads": sizes.heads, "kv_num_heads": sizes.few}
        result = net.op("Attention", [*rows, *extra], rows[0].shape, **attributes)
        return Heads(net.reshape(result, *packed[0].shape), "bnhd")
    values = [h.arranged(net, "bhnd") for h in qkv]
    result = net.op("Attention", [*values, *extra], values[0].shape, **attributes)
    return Heads(result, "bhnd")


# -- windows ---------------------------------------------------------------------------------------


def in_windows(net: Net, form: Form, sizes: Sizes, x: Value, key: object) -> tuple[Value, Made]:
    """Swin: tokens on a grid attend to those of their window; the grid may be rolled."""
    batch, _, channels = x.shape
    image = net.reshape(x, batch, SIDE, SIDE, channels)
    image = rolled(net, image, 1) if form.windows == "shifted" else image
    count = SIDE // WINDOW
    apart = net.reshape(image, batch, count, WINDOW, count, WINDOW, channels)
    turned = net.transpose(apart, [0, 1, 3, 2, 4, 5])
    windows = product((batch, count, count))
    tokens = net.reshape(turned, windows, WINDOW * WINDOW, channels)
    inner = replace(sizes, batch=windows, tokens=WINDOW**2, keys=WINDOW**2)
    y, made = attend(net, form, inner, tokens, key)
    apart = net.reshape(y, batch, count, count, WINDOW, WINDOW, channels)
    image = net.reshape(net.transpose(apart, [0, 1, 3, 2, 4, 5]), batch, SIDE, SIDE, channels)
    image = rolled(net, image, SIDE - 1) if form.windows == "shifted" else image
    return net.reshape(image, *x.shape), made


def rolled(net: Net, image: Value, by: int) -> Value:
    for axis in (1, 2):
        parts = [net.slice(image, by, SIDE, axis), net.slice(image, 0, by, axis)]
        image = net.concat(parts, axis)
    return image


# -- whole networks --------------------------------------------------------------------------------


Layer = tuple[Form, Sizes, object]


def network(net: Net, layers: list[Layer], *, residual: bool) -> tuple[Value, list[Made]]:
    """Attentions one after the other; the same key means the same weights."""
    form, sizes, _ = layers[0]
    length = {"b": sizes.batch, "n": sizes.tokens, "c": sizes.channels}
    x = net.input("x", [length[letter] for letter in form.tokens])
    made = []
    for form, sizes, key in layers:
        act = in_windows if form.windows != "none" else attend
        y, one = act(net, form, sizes, x, key)
        made.append(one)
        x = net.binary("Add", x, y) if residual else y
    return x, made


def fitted(form: Form, sizes: Sizes) -> tuple[Form, Sizes]:
    """The nearest form and sizes that mean something: not every word goes with every other."""
    for fit in (fit_source, fit_tokens, fit_packing, fit_scores, fit_op):
        form, sizes = fit(form, sizes)
    return form, sizes


def fit_source(form: Form, sizes: Sizes) -> tuple[Form, Sizes]:
    """Windows and pooled keys are on a grid; what a query attends to has one length."""
    if form.windows != "none":
        form = replace(form, source="self", tokens="bnc", cache=False)
        sizes = replace(sizes, tokens=SIDE * SIDE, keys=SIDE * SIDE)
        if is_dynamic(sizes.batch) and "b" in form.mask:
            form = replace(form, mask="constant")  # no input has as many as there are windows
    elif form.source == "pooled":
        form = replace(form, tokens="bnc", cache=False)
        sizes = replace(sizes, tokens=POOLED, keys=2)
    elif form.source == "self":
        sizes = replace(sizes, keys=sizes.tokens)
    if form.source != "self":
        form = replace(form, cache=False)
    if form.cache and is_dynamic(sizes.tokens):  # past + present has no name for an input
        form = replace(form, position="none", mask="causal" if form.mask == "causal" else "none")
    return form, sizes


def fit_tokens(form: Form, sizes: Sizes) -> tuple[Form, Sizes]:
    """Without a batch there is no axis for it anywhere."""
    if form.softmax == "Attention" and form.tokens == "nc":
        form = replace(form, tokens="bnc")
    if form.tokens == "nc":
        form, sizes = replace(form, layout="hnd", cache=False), replace(sizes, batch=1)
    elif form.layout == "hnd":
        form = replace(form, layout="bhnd")
    return form, sizes


def fit_packing(form: Form, sizes: Sizes) -> tuple[Form, Sizes]:
    """What is packed together comes from one place, and has as many heads."""
    if form.source != "self" and form.packing not in WITH_MEMORY:
        form = replace(form, packing="separate")
    if form.packing == "per head weights" and form.tokens != "bnc":
        form = replace(form, packing="separate")
    if form.packing not in WITH_FEW:
        sizes = replace(sizes, few=sizes.heads)
    return form, sizes


def fit_scores(form: Form, sizes: Sizes) -> tuple[Form, Sizes]:
    """Rotations turn pairs of features; grids are square; five axes are multiplied by MatMul."""
    if form.rotary != "none":
        sizes = replace(sizes, width=4 * -(-sizes.width // 4))
    is_square = form.source == "self" and not form.cache and not is_dynamic(sizes.tokens)
    if form.position == "decomposed" and not (is_square and form.tokens != "nc"):
        form = replace(form, position="none")
    if sizes.few < sizes.heads and form.repeat in ("broadcast", "five axes"):
        form = replace(form, scores="MatMul", values="MatMul")
        form = form if form.layout == "hnd" else replace(form, layout="bhnd")
        if form.repeat == "five axes" and form.layout == "hnd":
            form = replace(form, repeat="Expand")
        if form.repeat == "broadcast":
            sizes = replace(sizes, few=1)
    return form, sizes


def fit_op(form: Form, sizes: Sizes) -> tuple[Form, Sizes]:
    """onnxruntime's Attention broadcasts no mask along queries, and takes what ONNX took last."""
    if form.softmax != "Attention":
        return form, sizes
    if form.mask.startswith("bool") or form.mask in ("causal", "input b11m"):
        form = replace(form, mask="none")
    if form.position == "slopes":
        form = replace(form, position="none")
    if form.mask != "none" or form.position != "none" or form.behind != "none":
        form = replace(form, cap=False)  # ONNX and onnxruntime differ on which comes first
    return replace(form, layout="folded" if form.layout == "folded" else "bhnd"), sizes


WORDS = {part: st.sampled_from(words) for part, words in LANGUAGE.items()}
SMALL = st.sampled_from([5, 1, 2, 3, 4, 6])


@st.composite
def forms(draw) -> Form:
    """Half of the parts in plain words, the others in any."""
    return Form(**{
        part: draw(words) if draw(st.booleans()) else LANGUAGE[part][0]
        for part, words in WORDS.items()
    })  # fmt: skip


@st.composite
def all_sizes(draw) -> Sizes:
    """Small and often equal; batch and tokens may be dynamic."""
    if draw(st.integers(0, 4)) == 0:
        same = draw(st.sampled_from([3, 2, 4]))
        batch, tokens, keys, heads, width = (same,) * 5
    else:
        batch, heads = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([4, 2, 3, 1, 6]))
        tokens, keys, width = draw(SMALL), draw(SMALL), draw(st.sampled_from([3, 1, 2, 4]))
    few = draw(st.sampled_from([k for k in range(heads, 0, -1) if heads % k == 0]))
    dynamic = draw(st.sampled_from(["none", "none", "b", "n", "bn"]))
    batch = Size(batch, "batch") if "b" in dynamic else batch
    tokens = Size(tokens, "tokens") if dynamic in ("n", "bn") else tokens
    channels = draw(st.sampled_from([heads * width, 5, 8]))
    return Sizes(batch, tokens, keys, heads, few, width, channels)


@st.composite
def second_layers(draw, form: Form, sizes: Sizes) -> list[Layer]:
    """None, another of the same form, the same with its weights, or one of any form."""
    kind = draw(st.sampled_from(["none", "none", "own", "shared", "other"]))
    if kind == "shared" and not form.cache:
        return [(form, sizes, "a")]
    if kind == "other":
        wanted = replace(draw(forms()), tokens=form.tokens, windows=form.windows, cache=False)
        other, others = fitted(wanted, sizes)
        same = (sizes.batch, sizes.tokens, form.tokens) == (
            others.batch,
            others.tokens,
            other.tokens,
        )
        return [(other, others, "b")] if same else []
    return [(form, sizes, "b")] if kind == "own" else []


@st.composite
def networks(draw) -> Network:
    """A valid model of one or two attentions."""
    form, sizes = fitted(draw(forms()), draw(all_sizes()))
    layers = [(form, sizes, "a"), *draw(second_layers(form, sizes))]
    words = {str(word) for form, *_ in layers for word in vars(form).values()}
    least = max(NEEDS.get(word, 13) for word in words)
    style = Style(
        opset=max(draw(st.sampled_from([17, 13, 18, 20, 23])), least),
        constants=draw(st.sampled_from(["initializer", "node"])),
        weights=draw(st.sampled_from(["plain", "transposed", "float16", "identity"])),
        shapes=draw(st.sampled_from(["copied", "computed"])),
    )
    net = Net(style, draw(st.integers(0, 3)))
    y, made = network(net, layers, residual=draw(st.booleans()))
    net.output(y)
    tapped = draw_taps(draw, net, made)
    return Network(net.model(), made, tapped, sizes.is_dynamic)


def draw_taps(draw, net: Net, made: list[Made]) -> set[str]:
    """More outputs: any tensor, as it is or through another consumer."""
    kind = draw(st.sampled_from(["none", "none", "probabilities", "any", "two"]))
    if kind == "none":
        return set()
    known = {v.name: v for v in net.values if v.name not in net.inputs}
    if kind == "probabilities":
        known = {n: v for n, v in known.items() if any(n in one.probabilities for one in made)}
    count = min(len(known), 2 if kind == "two" else 1)
    chosen = {draw(st.sampled_from(sorted(known))) for _ in range(count)}
    for number, name in enumerate(sorted(chosen)):
        net.output(known[name], draw(st.sampled_from([None, f"tap_{number}"])))
    return set(chosen)
