"""Less code to type, lower and parse for what kernels are made of: counted loops, and entries and rows of arrays."""

from __future__ import annotations

import operator

from numba import types
from numba.core import cgutils, ir, typed_passes
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.lowering import Lower


@register_pass(mutates_CFG=True, analysis_only=False)
class CountedLoops(FunctionPass):
    """Loops over ranges of a constant step as a counter that is compared, without an iterator."""

    _name = "counted_loops"

    def __init__(self):
        super().__init__()

    def run_pass(self, state):
        blocks = state.func_ir.blocks
        definitions: dict[str, list] = {}
        for block in blocks.values():
            for statement in block.find_insts(ir.Assign):
                definitions.setdefault(statement.target.name, []).append((block, statement))

        def only(variable, kind):
            """The block and the statement of a variable's only definition, where that is of this kind."""
            known = definitions.get(variable.name, ())
            return known[0] if len(known) == 1 and isinstance(known[0][1].value, kind) else (None, None)

        for block in blocks.values():
            for statement in list(block.find_exprs("iternext")):
                self._count(block, statement, only)
        return True

    def _count(self, header, following, only) -> None:
        """Turn the loop with this header into a counted one, if it is over a range."""
        entry, copied = only(following.value, ir.Var)
        _, iterator = only(copied.value, ir.Expr) if copied else (None, None)
        if iterator is None or iterator.value.op != "getiter":
            return
        before, called = only(iterator.value.value, ir.Expr)
        if called is None or called.value.op != "call" or before is not entry or called.value.kws:
            return
        _, function = only(called.value.func, ir.Global)
        arguments = called.value.args
        step = 1
        if len(arguments) == 3:
            _, constant = only(arguments[2], ir.Const)
            step = constant.value.value if constant else 0
        if function is None or function.value.value is not range or not step:
            return
        scope, loc = entry.scope, called.loc

        def new(name):
            return scope.redefine(f"$range.{name}", loc)

        def assigned(variable, value):
            return ir.Assign(value, variable, loc)

        counter, stop, by, more = new("counter"), new("stop"), new("step"), new("more")
        start = ir.Const(0, loc) if len(arguments) == 1 else arguments[0]
        at = entry.body.index(called)
        entry.body[at : at + 1] = [
            assigned(counter, start),
            assigned(stop, arguments[len(arguments) > 1]),
            assigned(by, ir.Const(step, loc)),
        ]
        entry.body = [statement for statement in entry.body if statement not in (iterator, copied)]
        compare, result = operator.lt if step > 0 else operator.gt, []
        for statement in header.body:
            value = getattr(statement, "value", None)
            op = getattr(value, "op", None)
            if value is following:
                iteration = statement.target.name
                result.append(assigned(more, ir.Expr.binop(compare, counter, stop, loc)))
            elif op == "pair_first" and value.value.name == iteration:
                result.append(assigned(statement.target, counter))
                further = new("further")
                result.append(assigned(further, ir.Expr.binop(operator.add, counter, by, loc)))
                result.append(assigned(counter, further))
            elif op == "pair_second" and value.value.name == iteration:
                result.append(assigned(statement.target, more))
            else:
                result.append(statement)
        header.body = result


class Operators:
    """A typing context that looks up only once what an operator makes of the same types."""

    def __init__(self, context):
        self._context, self._known = context, {}

    def __getattr__(self, name):
        return getattr(self._context, name)

    def resolve_function_type(self, function, arguments, keywords):
        """The signature of a call."""
        if not (isinstance(function, types.Function) and getattr(function.typing_key, "__module__", "") == "_operator"):
            return self._context.resolve_function_type(function, arguments, keywords)
        key = function, tuple(arguments)
        if key not in self._known:
            self._known[key] = self._context.resolve_function_type(function, arguments, keywords)
        return self._known[key]


@register_pass(mutates_CFG=True, analysis_only=False)
class Inference(typed_passes.NopythonTypeInference):
    """Numba's type inference with `Operators`."""

    _name = "kernel_type_inference"

    def run_pass(self, state):
        context, state.type_annotation = state.typingctx, ""  # which Numba would write down line by line
        state.typingctx = Operators(context)
        try:
            return super().run_pass(state)
        finally:
            state.typingctx = context


class KernelLower(Lower):
    """Numba's lowering, but for functions, and entries of C-ordered arrays, whose indices are never negative here."""

    def lower_assign(self, ty, inst):
        """The name of a compiled function: no address, which would keep the code off the disk, as calls need none."""
        if isinstance(ty, types.Dispatcher) and isinstance(inst.value, (ir.Global, ir.FreeVar)):
            return self.context.get_constant_null(ty)
        return super().lower_assign(ty, inst)

    def lower_getitem(self, resty, expr, value, index, signature):
        """An entry: a load from its address."""
        kind, place = self.typeof(value.name), self._place(value, index)
        if place is None:
            return super().lower_getitem(resty, expr, value, index, signature)
        return self.context.cast(
            self.builder, self.context.unpack_value(self.builder, kind.dtype, place), kind.dtype, resty
        )

    def lower_setitem(self, target_var, index_var, value_var, signature):
        """An entry: a store to its address."""
        kind, place = self.typeof(target_var.name), self._place(target_var, index_var)
        if place is None:
            return super().lower_setitem(target_var, index_var, value_var, signature)
        value = self.context.cast(self.builder, self.loadvar(value_var.name), self.typeof(value_var.name), kind.dtype)
        return self.context.pack_value(self.builder, kind.dtype, value, place)

    def _place(self, array, index):
        """Address of the entry of a C-ordered array; None of anything else."""
        kind, counts = self.typeof(array.name), self.typeof(index.name)
        many = isinstance(counts, types.BaseTuple)
        counts = tuple(counts) if many else (counts,)
        plain = isinstance(kind, types.Array) and kind.layout == "C" and kind.ndim == len(counts)
        if not (plain and all(isinstance(count, types.Integer) for count in counts)):
            return None
        builder, model = self.builder, self.context.data_model_manager[kind]
        at, value = self.loadvar(index.name), self.loadvar(array.name)
        indices = cgutils.unpack_tuple(builder, at, len(counts)) if many else [at]
        indices = [self.context.cast(builder, i, count, types.int64) for i, count in zip(indices, counts, strict=True)]
        lengths = cgutils.unpack_tuple(builder, model.get(builder, value, "shape"), kind.ndim)
        total = indices[0]
        for length, i in zip(lengths[1:], indices[1:], strict=True):
            total = builder.add(builder.mul(total, length), i)
        return builder.gep(model.get(builder, value, "data"), [total])
