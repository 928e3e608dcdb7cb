% Octave's own pinv of a few small float64 matrices, with 17 digits, for tests/fastkoop/test_octave.py:
%   octave-cli tests/fastkoop/octave/make.m > tests/fastkoop/octave/pinv.json
1;
function Q = turned (n, seed)  % orthogonal, the same in every version: a product of reflections
  Q = eye (n);
  for k = 1:3
    v = sin ((1:n)' * (k + seed)) + 0.1;
    Q = Q * (eye (n) - 2 * v * v' / (v' * v));
  end
end
function A = with_values (n, m, s)
  p = min (n, m);
  A = turned (n, 1)(:, 1:p) * diag (s) * turned (m, 2)(:, 1:p)';
end
cases = {"hilbert", hilb(5); "magic", magic(4); "row", [3 0 4]; "column", [1; 2; 2]; "zero", zeros(3, 2); ...
         "tall", with_values(9, 4, [2 1 0.5 0.1]); "wide", with_values(4, 9, [2 1 0.5 0.1]); ...
         "above the rule", with_values(8, 5, [1 0.5 0.1 1e-2 64 * 8 * eps]); ...
         "below the rule", with_values(8, 5, [1 0.5 0.1 1e-2 eps]); ...
         "scaled down", 1e-200 * with_values(5, 3, [1 0.1 0.01]); ...
         "scaled up", 1e200 * with_values(5, 3, [1 0.1 0.01])};
printf ("{\"octave\": \"%s\"", version ());
for k = 1:rows (cases)
  A = cases{k, 2};
  printf (",\n \"%s\": {\"A\": \"%s\", \"pinv\": \"%s\"}", cases{k, 1}, mat2str (A, 17), mat2str (pinv (A), 17));
end
printf ("}\n");
