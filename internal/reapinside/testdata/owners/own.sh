# Makes and awaits children until the file $1 is there. The shells reap whatever they
# find, too.
own=0 wrong=0 i=0
check() { own=$((own + 1)); [ "$1" = "$2" ] || { wrong=$((wrong + 1)); echo "got $1, not $2" >&2; }; }
while [ ! -e "$1" ]; do
	i=$(((i + 1) % 100))
	sh -c "exit $i"; check $? $i
	(exit $i) & wait $!; check $? $i
	check "$(echo $i | cat)" $i
	false | true; check $? 0
	sleep 0.005
done
echo "own $own wrong $wrong"
