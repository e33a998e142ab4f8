# What the replay of a trace must come to, worked out from the files alone:
#
#   awk -f trace_expect.awk trace_agents.csv trace_budgets.csv TRACE
#
# prints user_id,calls,denied,tokens_cost per user. A budget's name tells its
# measure and its window; a window is as much of the call's time as it shares with
# the others in it: an hour 2023-11-16 18, a day 2023-11-16, a month 2023-11.

BEGIN { FS = ","; agents = 0; budgets = 0 }
FNR == 1 { file++; next }                # each file opens with a header
{ sub(/\r$/, "") }
file == 1 { agent[agents++] = $1; user[$1] = $2; next }
file == 2 { if ($5 != "warn") add_budget($1, $2, $3, $4); next }
{ call(agent[(FNR - 2) % agents], $1, $2, $3) }

END {
	for (u in calls)
		printf "%s,%.0f,%.0f,%.0f\n", u, calls[u], denied[u], spent[u]
}

function add_budget(scope, subject, limit, amount,    length_of) {
	length_of["hour"] = 13; length_of["day"] = 10; length_of["month"] = 7; length_of["total"] = 0
	subject_of[budgets] = subject
	measure[budgets] = limit ~ /^max_calls/ ? "calls" : "tokens"
	sub(/.*_/, "", limit)
	window[budgets] = length_of[limit]
	amount_of[budgets++] = amount
}

function call(a, ts, context, generated,    i, key, applies) {
	calls[user[a]]++
	for (i = 0; i < budgets; i++) {
		if (subject_of[i] != a && subject_of[i] != user[a])
			continue
		key = i SUBSEP substr(ts, 1, window[i])
		applies[i] = key
		if (!fits(i, used[key], context)) {
			denied[user[a]]++
			return
		}
	}
	spent[user[a]] += context + generated
	for (i in applies)
		used[applies[i]] += measure[i] == "calls" ? 1 : context + generated
}

function fits(i, before, cost) {
	if (measure[i] == "calls")
		return before + 1 <= amount_of[i]
	return cost > 0 ? before + cost <= amount_of[i] : before < amount_of[i]
}
