"""How Numba compiles the kernels: what a first call would otherwise wait for is left out.

Numba optimises every compiled function by itself and makes machine code of it, then links it into each caller and
optimises all of it again; of functions that Python never calls, that is code that nobody runs. Here their libraries
stay as they were lowered until a kernel takes them in. Passes of Numba's pipeline for what kernels do not use
(closures, parallel loops, array expressions, literal arguments) are left out, and loops over ranges become counters
before types are inferred, which is a third of the code to type, lower and parse.
"""

from __future__ import annotations

import gc

from llvmlite import binding
from numba import _dynfunc
from numba.core import typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, CompileResult, _LowerResult
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.typed_passes import NativeLowering

from .lowering import CountedLoops, Inference, KernelLower


class Library(JITCodeLibrary):
    """LLVM code of a kernel, optimised once, with all that it calls."""

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout


class Ingredient(Library):
    """LLVM code for kernels to link, not optimised and never run by itself."""

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name):
        raise RuntimeError(f"{self.name} has no machine code; only kernels call it")

    def serialize_using_object_code(self):
        return self.serialize_using_bitcode()

    def entry(self, descriptor, environment):
        """What Numba knows the function by; it cannot be called."""
        module, name = descriptor.lookup_module(), descriptor.qualname.split(".")[-1]
        return _dynfunc.make_function(module, name, "for kernels", 0, environment, (self,))


class Sums(Ingredient):
    """Code whose sums may be taken in any order, optimised by itself first: so the order is the same in all kernels."""

    def _optimize_final_module(self):
        Library._optimize_final_module(self)


def rebuilt(context, payload: tuple) -> CompileResult:
    """A compiled function as it was written to disk."""
    (name, form, code), descriptor, environment, signature, _, lifted, annotation, reload_init, others = payload
    if form != "bitcode":
        return CompileResult._rebuild(context, *payload)
    for prepare in reload_init:
        prepare()
    library = Ingredient(context.codegen(), name)
    library._final_module = binding.parse_bitcode(code)
    library._finalize_final_module()
    return CompileResult(
        context.typing_context, context, library.entry(descriptor, environment), None, annotation, signature, False,
        lifted, descriptor, library, None, environment, None, reload_init, others,
    )  # fmt: skip


@register_pass(mutates_CFG=True, analysis_only=False)
class KernelLowering(NativeLowering):
    """Lowering into a `Library`."""

    _name = "kernel_lowering"
    lowering_class = KernelLower

    def run_pass(self, state):
        state.library = Library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return super().run_pass(state)


@register_pass(mutates_CFG=True, analysis_only=False)
class IngredientLowering(NativeLowering):
    """Lowering into an `Ingredient`."""

    _name = "ingredient_lowering"
    lowering_class = KernelLower
    library_class = Ingredient

    def run_pass(self, state):
        context, state.flags.no_compile = state.targetctx, True
        state.library = library = self.library_class(context.codegen(), state.func_id.func_qualname)
        super().run_pass(state)
        lowered = state["cr"]
        function = library.entry(lowered.fndesc, lowered.env)
        context.insert_user_function(function, lowered.fndesc, [library])
        state.reload_init.extend(library._reload_init)
        state["cr"] = _LowerResult(lowered.fndesc, lowered.call_helper, cfunc=function, env=lowered.env)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class SumsLowering(IngredientLowering):
    """Lowering into `Sums`."""

    _name = "sums_lowering"
    library_class = Sums


class KernelCompiler(CompilerBase):
    """The passes that kernels need."""

    lowering: type = KernelLowering

    def compile_extra(self, func):
        """Without Python's search for garbage, of which compiling makes none that would matter: a tenth of its time."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            return super().compile_extra(func)
        finally:
            if collecting:
                gc.enable()

    def define_pipelines(self):
        manager = PassManager("kernel")
        for step in (
            untyped_passes.TranslateByteCode, untyped_passes.FixupArgs, untyped_passes.IRProcessing,
            untyped_passes.GenericRewrites, untyped_passes.InlineInlinables, CountedLoops,
            untyped_passes.ReconstructSSA, Inference, typed_passes.PreLowerStripPhis,
            typed_passes.NoPythonSupportedFeatureValidation, typed_passes.IRLegalization,
            self.lowering, typed_passes.NoPythonBackend,
        ):  # fmt: skip
            manager.add_pass(step, step._name)
        manager.finalize()
        return [manager]


class IngredientCompiler(KernelCompiler):
    """The same for functions that only kernels call."""

    lowering = IngredientLowering


class SumsCompiler(KernelCompiler):
    """The same where sums may be taken in any order."""

    lowering = SumsLowering
