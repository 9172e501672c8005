"""What the page says that is not computed: what is compared, how it came to be chosen, limits."""

INTRO = """\
# The four papers in miniature

Written by `make papers` from what it measured: the figures and verdicts of this run are computed,
none is typed. Typed are the published figures behind the claims and what is said of the trials.
What the methods are, with equations and published settings: [paper_index.md](paper_index.md). A toy
ranks nothing: what holds for chains of fourteen additions and 0.6 M parameters need not hold for a
language model.

## What is compared

- **World.** A two-digit number and fourteen signed one-digit terms, one operation a line, from left
  to right or from right to left as the first line says (`benchmarks/papers/world.py`). Two right
  solutions of a problem may share no line, and every line can be checked.
- **Start.** A decoder that makes no mistakes (shipped) takes up a habit, anew for every seed: a
  teacher that forgets the carry or borrow in {rate:.0%} of the cases where the operand is {weak},
  never elsewhere ({steps} steps of {batch} solutions). Errors are rare a step, common a solution.
- **Pairs.** Each seed's own, by `prefkit build dpo`, `step-dpo`, `scdpo` and `cdpo` from samples of
  its start at temperature 1. Every method learns from as many examples, in as many steps of as many
  examples: fine-tuning from solutions (references for the questions of the DPO pairs, or the right
  sides of these pairs), SCDPO from half naive, half step-controlled pairs. TDPO and RPO take DPO's
  pairs; of RPO the weight of the likelihood is 1. Equal are examples and steps, not what making
  them costs: {samples}.
- **Who is told more.** Only Step-DPO's build looks at steps, by a program that is never wrong about
  one: whole solutions are paired by their answers alone, and some right ones have wrong steps. And
  only fine-tuning on references sees gold solutions, right in every step, which no other method is
  given: it is there as a ceiling, not as a rival.
- **Settings.** By greedy accuracy on validation problems, with starts that no table shows. AdamW,
  β₂ 0.95, warm-up a tenth, then constant; gradient norm clipped at 1.
- **Measured** on test problems of each seed's own: greedy right answers, greedy solutions with
  every step right, right answers at temperature 1, and KL(start‖policy), exact at each token and
  summed along samples of the start. ± is half a 95 % interval over seeds (Student's t);
  differences are paired by seed."""

SMALL_RUN = "**A small run: it shows that the machinery works. Its figures mean nothing.**"

# Seeds of the tables that trials had looked at; the page gives the verdicts without them as well.
SEEN_BEFORE = (1,)

TRIALS = """\
## How the regimes were chosen

After trials, not before. Chains were made long, errors rare and examples few in order to find a
world where Step-DPO and cDPO could tell; in an earlier trial with six terms a problem Step-DPO had
not differed from DPO. **That Step-DPO tells in this world is therefore partly how the world was
found**, and no evidence that it tells in most.

- Habits tried on seed 1: forgetting in 70 % of the cases with operand 7 (60 steps; 100 steps with
  2 % elsewhere as well), and the one above.
- Settings tried on seed 1, with pairs of a sampler written for the trial and 400 validation
  problems: DPO, Step-DPO and TDPO2 at rates of 3e-5, 6e-5 and 1.2e-4 with β of 0.1, 0.3 and 1. In
  all nine, Step-DPO was above DPO and DPO above TDPO2. These are points of the grid.
- The builds were tried on seeds 1 and 7, the main regime with 120 questions and 48 and 64
  pairs; some settings of its methods on seed 7.
- The regime of the weak verifier was tried on seed 7 with 200 questions, of which came 43 of the 48
  Step-DPO pairs wanted; 320 were tried on seed 3, pairs alone, and kept. SCDPO was on its list and
  was taken off before the run.
- A first full run was stopped while it chose settings on seeds 100 and 101 (rates 3e-5 to 2.4e-4, β
  0.1 to 1, 300 validation problems, the highest accuracy decides). β 0.1 was best nearly
  everywhere, so β 0.03 came in and the rate 3e-5 went out; 400 problems and the rule of the
  gentlest setting came in because the highest figure was noise. No method had been measured on
  test problems then.
- The small run that tries the machinery (`--quick`) uses seeds 0, 1 and 100, with too few pairs and
  steps to learn from.

The tables' seeds are 0 to 4, those of the choice of settings 100 and 101. So seed 1 had been looked
at before, on validation problems, and of seed 3 the number of pairs. What trials left no record of
is not known here. The verdicts say what is left without seed 1."""

LIMITS = """\
## Limits

- One world, one size of model, one kind of mistake; skill shipped, so its training is one seed. The
  regimes were chosen after trials (above).
- Few seeds: the intervals assume that what seeds do is about normal, which five cannot show.
- The settings come from a coarse grid for few steps, not those of the papers. The intervals
  are over seeds at the settings chosen; that other validation starts might have chosen other
  settings is not in them.
- The program that finds the first wrong step for Step-DPO knows arithmetic and is never wrong about
  a line: an advantage that a judge model does not have.
- KL grows with what is learnt: where the start is wrong, being right is far from it. It compares
  methods of like accuracy, or like settings."""
