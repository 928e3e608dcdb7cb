// Which singular values count: cutoffs.py, line for line, run by one thread of a CTA.

namespace fastkoop {

constexpr double GAP = 16.0;  // cutoffs.GAP

struct Selection {
  int rank;
  bool edge, clear;  // clear: a Gram matrix settles it
  double threshold;
};

// Distance from x > 0, rounded to `digits` significand bits, to the next larger number with as many.
__device__ inline double spacing(double x, int digits) {
  int exponent;
  const double fraction = frexp(x, &exponent);
  const double half = digits == 24 ? 0x1p-25 : 0x1p-54;  // a unit in the last place of 1, halved twice
  if (fraction >= 1.0 - half) ++exponent;                // rounds up to a power of two
  return ldexp(1.0, max(exponent - digits, digits == 24 ? -149 : -1074));
}

// The threshold of the rules that need only the largest singular value; both in units of `scale`, a power of two.
__device__ inline double limit(double largest, const Problem& p, double scale) {
  if (p.rule == SPACING) return largest > 0.0 ? p.value * (spacing(largest * scale, p.digits) / scale) : 0.0;
  return p.value * largest;
}

// How many of `order` numbers, largest first, are larger than a bound; one thread, which waits for each that it reads.
__device__ inline int count_above(const double* sorted, int order, double bound) {
  int low = 0, high = order;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (sorted[middle] > bound)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Rank, threshold and edge from singular values and their squares, largest first; see cutoffs.select.
__device__ inline Selection select(const double* squares, const double* roots, int order, const Problem& p,
                                   double scale, double blur, double slack, double floor) {
  const double largest = roots[0];
  Selection found = {0, false, false, floor};
  if (!(largest > floor)) return found;
  if (p.rule == RANK || p.rule == ENERGY) {
    const int live = count_above(squares, order, floor * floor);
    int rank = p.rule == RANK ? static_cast<int>(min(p.value, static_cast<double>(live))) : 0;
    if (p.rule == ENERGY) {
      double total = 0.0, running = 0.0;
      for (int i = 0; i < live; ++i) total += squares[i];
      while (rank < live && running < p.value * total) running += squares[rank++];
      const double doubt = live * (blur + 2.0 * slack * largest), off = running - p.value * total;
      found.edge = (rank < live && fabs(off) <= doubt) || (rank > 1 && fabs(off - squares[rank - 1]) <= doubt);
    } else if (0 < rank && rank < live) {
      const double doubt = blur + 2.0 * slack * roots[rank - 1];
      found.edge = squares[rank - 1] - squares[rank] <= 2.0 * doubt;
    }
    found.rank = rank;
    found.threshold = rank < order ? roots[rank] : 0.0;  // the first value that does not count
    return found;
  }
  double threshold;
  if (p.rule == MEDIAN) {
    const double low = roots[order / 2], high = roots[(order - 1) / 2];
    threshold = max(p.value * 0.5 * (low + high), floor);
    blur *= 1.0 + p.value * p.value;  // the median is as uncertain as what it is compared with
    slack *= 1.0 + p.value;
  } else {
    threshold = limit(largest, p, scale);
  }
  found.rank = count_above(roots, order, threshold);
  if (p.rule == SPACING) {  // it jumps at powers of two
    const double doubt = blur / largest + slack;
    found.edge = limit(largest + doubt, p, scale) != limit(largest - doubt, p, scale);
  }
  for (int i = 0; i < order; ++i)
    found.edge |= fabs(squares[i] - threshold * threshold) <= blur + 2.0 * slack * threshold + slack * slack;
  if (p.rule == MEDIAN && found.rank == 0) {  // all noise, or a single value: the largest is kept
    found.rank = 1;
    threshold = order > 1 ? roots[1] : 0.0;
    found.edge |= order > 1 && squares[0] - squares[1] <= 2.0 * (blur + 2.0 * slack * largest);
  }
  found.threshold = threshold;
  return found;
}

// Whether a Gram matrix whose eigenvalues are trusted down to `least` settles this selection; see cutoffs.resolved.
__device__ inline bool resolved(const double* squares, int order, const Problem& p, const Selection& found,
                                double least) {
  const int rank = found.rank;
  if (rank > 0 && squares[rank - 1] < least) return false;
  if (0 < rank && rank < order && GAP * (squares[rank - 1] - squares[rank]) < least) return false;
  if (p.rule == RANK) return rank >= min(p.value, static_cast<double>(order));
  return p.rule == ENERGY || rank == order || found.threshold * found.threshold >= least;
}

// `select` on the eigenvalues of a Gram matrix, and whether it settles it.
__device__ inline Selection judge(const double* squares, const double* roots, int order, const Problem& p,
                                  double scale) {
  const double largest = max(squares[0], 0.0);
  Selection found = select(squares, roots, order, p, scale, p.gram * largest, 0.0, 0.0);
  found.clear = resolved(squares, order, p, found, p.least * largest);
  return found;
}

// `select` on the squares of singular values that are known to p.svd of the largest.
__device__ inline Selection judge_values(const double* squares, const double* roots, const Problem& p, double scale) {
  const double largest = roots[0];
  const double floor = p.rule == RELATIVE || p.rule == SPACING ? 0.0 : max(p.n, p.m) * EPS * largest;
  return select(squares, roots, p.order, p, scale, 0.0, p.svd * largest, floor);
}

}  // namespace fastkoop
