# report.awk: a comparison's table, out of its contenders, its turns, and
# pgbench's logs (client, transaction, latency, script, seconds, microseconds).
# Figures are medians over the rounds; a round's are over its two turns.  A contender
# in series has its ratio told round by round below.

FILENAME ~ /\/contenders$/ {
  split($0, field, "\t")
  order[++contenders] = field[1]
  reference[field[1]] = field[2]
  title[field[1]] = field[3]
  next
}

FILENAME ~ /\/turns$/ {
  n = ++turns[$1]
  round[$1, n] = $2
  from[$1, n] = $3
  to[$1, n] = $4
  time[$1, $2] += $4 - $3
  cpu[$1, $2] += $5 / 1000
  if ($2 > rounds)
    rounds = $2
  next
}

FNR == 1 {
  name = FILENAME
  sub(/.*\//, "", name)
  sub(/\..*/, "", name)
  turn = 1
}

# A turn counts what ended in it.  A log is in order of time, and so are turns.
{
  ended = $5 + $6 / 1000000
  while (turn <= turns[name] && ended > to[name, turn])
    turn++
  if (turn > turns[name] || ended <= from[name, turn])
    next
  r = round[name, turn]
  count[name, r]++
  latency[name, r] += $3
  seen[name, r, $3]++
  if ($3 > longest[name, r])
    longest[name, r] = $3
}

# The latency that one of a hundred exceeds.
function percentile99(name, r,    left, l) {
  left = count[name, r] / 100
  for (l = longest[name, r]; l > 0; l--)
    if ((left -= seen[name, r, l]) < 0)
      return l
  return 0
}

# The median of figure[1..rounds], which is left sorted.
function median(    i, j, x) {
  for (i = 2; i <= rounds; i++) {
    x = figure[i]
    for (j = i - 1; j > 0 && figure[j] > x; j--)
      figure[j + 1] = figure[j]
    figure[j + 1] = x
  }
  return (figure[int((rounds + 1) / 2)] + figure[int((rounds + 2) / 2)]) / 2
}

function median_of(array, name,    r) {
  for (r = 1; r <= rounds; r++)
    figure[r] = array[name, r]
  return median()
}

function median_ratio(array, name, other,    r) {
  for (r = 1; r <= rounds; r++)
    figure[r] = array[other, r] ? array[name, r] / array[other, r] : 0
  return median()
}

# 12345.6 as 12,346
function thousands(x,    s) {
  s = sprintf("%.0f", x)
  return length(s) > 3 ? substr(s, 1, length(s) - 3) "," substr(s, length(s) - 2) : s
}

END {
  for (i = 1; i <= contenders; i++)
    for (r = 1; r <= rounds; r++) {
      name = order[i]
      n = count[name, r]
      if (n == 0)
        continue
      rate[name, r] = calls * n / time[name, r]
      mean[name, r] = latency[name, r] / n / 1000
      p99[name, r] = percentile99(name, r) / 1000
      each[name, r] = cpu[name, r] / n / calls
    }
  print "| | per second | ratio | from … to | mean ms | p99 ms | p99 ratio | CPU µs each | CPU ratio |"
  print "| --- | --: | --: | :-: | --: | --: | --: | --: | --: |"
  for (i = 1; i <= contenders; i++) {
    name = order[i]
    other = reference[name]
    line = sprintf("| %s | %s |", title[name], thousands(median_of(rate, name)))
    if (name == other)
      line = line sprintf(" 1 | | %.2f | %.2f | 1 | %.0f | 1 |",
                          median_of(mean, name), median_of(p99, name), median_of(each, name))
    else {
      ratio = median_ratio(rate, name, other)
      line = line sprintf(" **%.2f** | %.2f … %.2f |", ratio, figure[1], figure[rounds])
      line = line sprintf(" %.2f | %.2f | %.2f |", median_of(mean, name), median_of(p99, name),
                          median_ratio(p99, name, other))
      line = line sprintf(" %.0f | %.2f |", median_of(each, name), median_ratio(each, name, other))
    }
    print line
  }
  if (series) {
    line = ""
    for (r = 1; r <= rounds; r++) {
      first = rate[reference[series], r]
      line = line (r > 1 ? ", " : "") sprintf("%.2f", first ? rate[series, r] / first : 0)
    }
    print "\nRound by round, " title[series] " ÷ " title[reference[series]] ": " line "."
  }
}
